#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Memory order [outer, channels, inner], whatever the order of the dimensions: channels-last
// memory has inner = 1. The kernel takes blocks of rms_norm_silu_block pixels: of all pixels where
// inner = 1, else block i is number i % blocks of plane i / blocks, blocks = ceil(inner / block).
constexpr int64_t rms_norm_silu_block = 16, rms_norm_silu_planar_block = 256;

struct RmsNormSilu {
  const void* x;
  const float* gamma;  // [channels]
  const float* bias;   // [channels]; null: none
  void* out;
  int64_t outer, channels, inner;
  bool half;    // x and out are bf16, not fp32
  bool stream;  // out is too large for the caches, and its pixels are aligned
};

}  // namespace livetalk

LIVETALK_KERNEL(rms_norm_silu, const RmsNormSilu& args, int64_t begin, int64_t end)
