#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Row i of x begins at x + i * stride; q and scale are contiguous.
struct Quantize {
  const void* x;   // [rows, width]
  uint8_t* q;      // [rows, width], FP8 e4m3
  float* scale;    // [rows, width / block]
  int64_t stride;  // in elements
  int64_t width;
  int64_t block;  // neighbours that share a scale; divides width
  bool half;      // x is bf16, not fp32
};

}  // namespace livetalk

LIVETALK_KERNEL(quantize, const Quantize& args, int64_t begin, int64_t end)
