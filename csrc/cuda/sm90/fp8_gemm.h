// Arguments, launchers and choices of the FP8 linears on CUTLASS. Plain C++, for nvcc, for the
// bindings and for the tests.
#pragma once

#include <cstdint>
#include <limits>

typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime_api.h

namespace livetalk::cuda {

constexpr int fp8_block = 128;  // steps of K, and columns of a result in FP8, that share a scale

// a [rows, depth] times b [columns, depth] transposed, both e4m3 and contiguous, 16-byte aligned;
// 16 divides depth and columns, none is 0. The contracts: ops/fp8_gemm, ops/fp8_gemm_gelu_quant.
struct Fp8Linear {
  const void* a;
  const void* b;
  const float* scale_a;
  int scale_row;   // elements of scale_a from a row to the next
  int scale_step;  // and from a block of depth to the next: 0 for one scale per row
  const float* scale_b;  // [columns]
  const void* bias;      // [columns], bf16 or fp32; null: none
  bool half_bias;
  void* out;               // [rows, columns], bf16 or e4m3
  float* out_scale;        // [rows, columns / 128], of e4m3 only
  int64_t out_scale_row;   // elements of out_scale from a row to the next
  int64_t out_scale_step;  // and from a block of columns to the next
  int rows;
  int columns;
  int depth;
};

struct Gpu {
  int device;
  int processors;
};

// Tells where the scales [rows, blocks] of a are, by their strides; blocks is 1 or depth / 128.
// Neighbouring rows, strides (1, rows), are read best. False: too far apart for the kernel.
inline bool set_scale_strides(Fp8Linear& args, int64_t blocks, int64_t row, int64_t step) {
  if (args.rows < 2) row = 0;  // the stride of a dimension of one has no meaning
  if (blocks < 2) step = 0;
  if ((args.rows - 1) * row + (blocks - 1) * step > std::numeric_limits<int>::max()) return false;
  args.scale_row = static_cast<int>(row);
  args.scale_step = static_cast<int>(step);
  return true;
}

// Columns of a tile of 128 rows: 192 or 128, whichever needs less time in full waves.
//
// By arithmetic, not measured: the tiles' products are as 3 to 2, what they read is as 5 to 4, and
// their time is taken as 7 to 5. Two tiles of a cluster lie below each other.
inline int tile_columns(int64_t rows, int64_t columns, int processors) {
  const int64_t down = (rows + 255) / 256 * 2;
  const int64_t wide = (down * ((columns + 191) / 192) + processors - 1) / processors;
  const int64_t narrow = (down * ((columns + 127) / 128) + processors - 1) / processors;
  return 7 * wide <= 5 * narrow ? 192 : 128;
}

// Each gives null once its kernel is launched, else what is wrong.
const char* fp8_gemm_128x128(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);
const char* fp8_gemm_128x192(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);
const char* fp8_gemm_gelu_quant(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);

}  // namespace livetalk::cuda
