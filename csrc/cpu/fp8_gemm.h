#pragma once

#include "cpu/kernels.h"

namespace livetalk {

constexpr int64_t fp8_rows = 16;      // rows of a that are widened together
constexpr int64_t fp8_columns = 128;  // outputs that are calculated, and may be quantised, together
constexpr int64_t fp8_block = 128;    // values of a that share a scale, where a row has several

// out = a b^T s_a s_b + bias for the rows [first, first + count). All of it is contiguous.
struct Fp8Gemm {
  const uint8_t* a;      // [rows, depth] e4m3
  const uint8_t* b;      // [columns, depth] e4m3
  const float* scale_a;  // [rows, blocks]
  const float* scale_b;  // [columns]
  const float* bias;     // [columns] or null
  int64_t columns, depth, blocks;  // blocks: 1, or one per fp8_block of depth
  int64_t first, count;
  void* widened;  // those rows of a, as widen_fp8 leaves them

  void* out;  // [rows, columns], bf16 if half, else fp32; or, where it is null,
  bool half;
  uint8_t* q;    // GELU(tanh) of the result [rows, columns] e4m3
  float* scale;  // [rows, columns / fp8_columns]
};

// Bytes of `widened` for `count` rows.
inline int64_t fp8_widened(int64_t count, int64_t depth) {
  return 4 * ((count + fp8_rows - 1) / fp8_rows * fp8_rows) * (depth + depth % 2);
}

}  // namespace livetalk

// Groups [begin, end) of fp8_rows rows.
LIVETALK_KERNEL(widen_fp8, const Fp8Gemm& args, int64_t begin, int64_t end)
// Groups [begin, end) of fp8_columns columns.
LIVETALK_KERNEL(fp8_gemm, const Fp8Gemm& args, int64_t begin, int64_t end)
