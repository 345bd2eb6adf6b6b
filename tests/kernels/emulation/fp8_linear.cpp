// The parts of csrc/cuda/sm90 that need no tensor cores, with plain C arguments.
#include "cuda.h"

#include <algorithm>

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __fdividef(float x, float y) { return x / y; }

#include "cuda/sm90/fp8_gemm.h"
#include "cuda/sm90/quantise.cuh"

using namespace livetalk::cuda;

extern "C" int emulate_tile_columns(int64_t rows, int64_t columns, int processors) {
  return tile_columns(rows, columns, processors);
}

// Where the scale of element (m, k) is, as CUTLASS's layout of scale_a finds it; -1: too far.
extern "C" int64_t emulate_scale_index(
    int rows, int64_t blocks, int64_t row, int64_t step, int64_t m, int64_t k) {
  Fp8Linear args{};
  args.rows = rows;
  if (!set_scale_strides(args, blocks, row, step)) return -1;
  return m * args.scale_row + k / fp8_block * args.scale_step;
}

// GELU of rows of 128 values, in place of x, and their scales.
extern "C" void emulate_gelu_blocks(float* x, float* scale, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    float* values = x + row * fp8_block;
    uint32_t peak = 0;
    for (int i = 0; i < fp8_block; ++i) {
      values[i] = gelu_tanh(values[i]);
      peak = std::max(peak, magnitude_bits(values[i]));
    }
    scale[row] = fp8_scale(__uint_as_float(peak));
  }
}
