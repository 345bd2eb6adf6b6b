#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Token l of batch b of an input begins at x + b * batch_stride + l * row_stride; its head h in
// the result at out + (b * tokens + l) * row_pitch + h * head_pitch. Distances are in elements.
struct RmsNormRope {
  struct Side {
    const void* x;  // [batch, tokens, heads * head_size]
    int64_t batch_stride, row_stride;
    const float* weight;  // [heads * head_size]
    void* out;
  };
  Side q, k;
  const float* cos;  // [rows, head_size / 2]; token l uses row row_offset + l
  const float* sin;
  int64_t tokens, heads, head_size, row_offset;
  int64_t row_pitch, head_pitch;
  float eps;
  bool half;    // inputs and results are bf16, not fp32
  bool stream;  // the results are too large for the caches, and their heads are aligned
};

}  // namespace livetalk

LIVETALK_KERNEL(rms_norm_rope, const RmsNormRope& args, int64_t begin, int64_t end)
