// Arguments, launchers and tile choice of the FP8 linears on CUTLASS. Plain C++, for nvcc, the
// bindings and the tests.
#pragma once

#include <cstdint>
#include <limits>

typedef struct CUstream_st* cudaStream_t;  // as in cuda_runtime_api.h

namespace livetalk::cuda {

constexpr int fp8_block = 128;  // steps of K, and columns of an FP8 result, that share a scale

// a [rows, depth] times b [columns, depth] transposed, both e4m3 and contiguous, 16-byte aligned;
// 16 divides depth and columns, none is 0. The contracts: ops/fp8_gemm, ops/fp8_gemm_gelu_quant.
struct Fp8Linear {
  const void* a;
  const void* b;
  const float* scale_a;
  int scale_row;   // elements of scale_a from one row to the next
  int scale_step;  // and from one block of depth to the next: 0 for one scale per row
  const float* scale_b;  // [columns]
  const void* bias;      // [columns], bf16 or fp32; null: none
  bool half_bias;
  void* out;               // [rows, columns], bf16 or e4m3
  float* out_scale;        // [rows, columns / 128], for e4m3 only
  int64_t out_scale_row;   // elements of out_scale from one row to the next
  int64_t out_scale_step;  // and from one block of columns to the next
  int rows;
  int columns;
  int depth;
};

struct Gpu {
  int device;
  int processors;
};

// Sets the strides of a's scales [rows, blocks]; blocks is 1 or depth / 128. Contiguous rows,
// strides (1, rows), are read fastest. Returns false if the strides are too large for the kernel.
inline bool set_scale_strides(Fp8Linear& args, int64_t blocks, int64_t row, int64_t step) {
  if (args.rows < 2) row = 0;  // the stride of a dimension of size 1 is meaningless
  if (blocks < 2) step = 0;
  if ((args.rows - 1) * row + (blocks - 1) * step > std::numeric_limits<int>::max()) return false;
  args.scale_row = static_cast<int>(row);
  args.scale_step = static_cast<int>(step);
  return true;
}

// Columns of a tile of 128 rows: 192 or 128, whichever takes less time in full waves.
//
// By arithmetic, not measured: the tiles' products are in the ratio 3 to 2, their reads 5 to 4, and
// their time is taken as 7 to 5. The two tiles of a cluster are one below the other.
inline int tile_columns(int64_t rows, int64_t columns, int processors) {
  const int64_t down = (rows + 255) / 256 * 2;
  const int64_t wide = (down * ((columns + 191) / 192) + processors - 1) / processors;
  const int64_t narrow = (down * ((columns + 127) / 128) + processors - 1) / processors;
  return 7 * wide <= 5 * narrow ? 192 : 128;
}

// Each returns null once its kernel is launched, else what is wrong.
const char* fp8_gemm_128x128(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);
const char* fp8_gemm_128x192(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);
const char* fp8_gemm_gelu_quant(const Fp8Linear& args, Gpu gpu, cudaStream_t stream);

}  // namespace livetalk::cuda
