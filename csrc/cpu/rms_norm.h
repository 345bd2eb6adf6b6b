#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Row i of x begins at x + i * stride; out is contiguous.
struct RmsNorm {
  const void* x;        // [rows, width]
  const float* weight;  // [width]
  void* out;            // [rows, width]
  int64_t stride;       // in elements
  int64_t width;
  float eps;
  bool half;    // x and out are bf16, not fp32
  bool stream;  // out is too large for the caches, and its rows are aligned
};

}  // namespace livetalk

LIVETALK_KERNEL(rms_norm, const RmsNorm& args, int64_t begin, int64_t end)
