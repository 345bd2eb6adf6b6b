#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Vectors are fp32 [width]; gate may be null, which means 1. Rows are contiguous.
struct AddNorm {
  const void* x;  // [rows, width]
  const void* y;
  const float* gate;
  const float* weight;
  const float* bias;
  void* x_new;
  void* h;
  int64_t width;
  float eps;
  bool half;    // x, y, x_new and h are bf16, not fp32
  bool stream;  // x_new and h are too large for the caches, and their rows are aligned
};

// The same with h as FP8 [rows, width] and one scale per row.
struct AddNormQuant {
  AddNorm norm;
  uint8_t* q;
  float* scale;
};

}  // namespace livetalk

LIVETALK_KERNEL(add_norm, const AddNorm& args, int64_t begin, int64_t end)
LIVETALK_KERNEL(add_norm_quant, const AddNormQuant& args, int64_t begin, int64_t end)
