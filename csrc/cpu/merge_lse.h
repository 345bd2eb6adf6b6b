#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// All contiguous. The kernel takes blocks of queries, merge_lse_block at a time: block i is number
// i % blocks of batch i / blocks, blocks = ceil(tokens / merge_lse_block).
constexpr int64_t merge_lse_block = 16;

struct MergeLse {
  const void* out_a;  // [batch, tokens, heads, head_size]
  const float* lse_a;  // [batch, heads, tokens]
  const void* out_b;
  const float* lse_b;
  void* out;
  float* lse;
  int64_t tokens, heads, head_size;
  bool half;    // out_a, out_b and out are bf16, not fp32
  bool stream;  // out is too large for the caches, and its heads are aligned
};

}  // namespace livetalk

LIVETALK_KERNEL(merge_lse, const MergeLse& args, int64_t begin, int64_t end)
