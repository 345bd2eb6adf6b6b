#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// A row is the channels of a pixel. Row i of x begins at x + i * x_stride, of y likewise; out is
// contiguous.
struct AddResidual {
  const void* x;      // [rows, width]
  const void* y;      // [rows, width]
  const float* bias;  // [width]
  void* out;          // [rows, width]
  int64_t x_stride, y_stride;  // in elements
  int64_t width;
  bool half;    // x, y and out are bf16, not fp32
  bool stream;  // out is too large for the caches, and its rows are aligned
};

}  // namespace livetalk

LIVETALK_KERNEL(add_residual, const AddResidual& args, int64_t begin, int64_t end)
