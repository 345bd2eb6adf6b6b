// fp8_gemm and fp8_gemm_gelu_quant: e4m3 is widened to bf16, exactly, and multiplied in pairs where
// the processor can (AVX-512), as fp32 elsewhere; sums are fp32.
//
// A group of columns is calculated for all rows before the next: its weights are widened once, and
// its sums are in the level-2 cache, together with a piece of the weights that `depth_step` bounds.
#include "cpu/fp8_gemm.h"

#include <algorithm>

#include "cpu/quantize_row.h"
#include "livetalk/fp8.h"
#include "livetalk/matmul.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t depth_step = 1024;
constexpr int64_t G = Packed<bf16>::group;
static_assert(depth_step % fp8_block == 0 && fp8_block % G == 0);
static_assert(fp8_rows % tile_rows == 0 && fp8_columns % tile_columns == 0);

// Packs rows [row, row + count) of an e4m3 matrix, columns [start, start + depth).
template <int64_t width>
void widen_panels(
    const uint8_t* matrix, int64_t stride, int64_t row, int64_t count, int64_t start,
    int64_t depth, bf16* scratch, packed_t<bf16>* to) {
  for (int64_t i = 0; i < count; ++i) {
    widen_e4m3(matrix + (row + i) * stride + start, depth, scratch + i * depth);
  }
  pack_rows<width>(scratch, depth, count, depth, to);
}

// Where rows of a are stored, from a multiple of tile_rows on: steps of depth are outermost.
packed_t<bf16>* widened(const Fp8Gemm& args, int64_t row, int64_t start, int64_t depth) {
  const int64_t rows = round_up(args.count, fp8_rows);
  return static_cast<packed_t<bf16>*>(args.widened) + rows * start + row * round_up(depth, G);
}

// sums [count, fp8_columns] += a[:, start : start + depth] times a packed piece of b.
void multiply(
    const Fp8Gemm& args, int64_t columns, int64_t start, int64_t depth, const packed_t<bf16>* b,
    float* sums) {
  const int64_t panel = panel_size<bf16>(tile_columns, depth);
  for (int64_t row = 0; row < args.count; row += tile_rows) {
    const packed_t<bf16>* a = widened(args, row, start, depth);
    for (int64_t column = 0; column < columns; column += tile_columns) {
      const packed_t<bf16>* right = b + column / tile_columns * panel;
      float* to = sums + row * fp8_columns + column;
      const auto at = [&](int64_t i, int64_t j) { return to + i * fp8_columns + j * Vec::width; };
      if (args.blocks == 1) {
        multiply_tile<bf16>(
            depth, a, right,
            [&](int64_t i, int64_t j) { return start ? Vec::load(at(i, j)) : Vec::zero(); },
            [&](int64_t i, int64_t j, Vec sum) { sum.store(at(i, j)); });
        continue;
      }
      for (int64_t k = 0; k < depth; k += fp8_block) {
        const int64_t block = (start + k) / fp8_block;
        float scales[tile_rows];
        for (int64_t i = 0; i < tile_rows; ++i) {
          const int64_t index = args.first + std::min(row + i, args.count - 1);
          scales[i] = args.scale_a[index * args.blocks + block];
        }
        multiply_tile<bf16>(
            fp8_block, a + k * tile_rows, right + k * tile_columns,
            [](int64_t, int64_t) { return Vec::zero(); },
            [&](int64_t i, int64_t j, Vec sum) {
              const Vec before = block ? Vec::load(at(i, j)) : Vec::zero();
              Vec::fma(sum, Vec::all(scales[i]), before).store(at(i, j));
            });
      }
    }
  }
}

// x / 2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + exp(-2 u)).
Vec gelu(Vec x) {
  const Vec cubic = Vec::fma(x * x, Vec::all(0.044715f), Vec::all(1.0f));
  const Vec exponent = x * cubic * Vec::all(-1.5957691216f);
  const Vec result = x / (Vec::all(1.0f) + exp(exponent));
  return Vec::select_less(Vec::all(88.0f), exponent, Vec::zero(), result);  // exp is clamped there
}

// What becomes of the sums of one row, columns [column, column + n).
void finish(const Fp8Gemm& args, int64_t row, int64_t column, int64_t n, float* sums) {
  const Vec scale = Vec::all(args.blocks == 1 ? args.scale_a[row] : 1.0f);
  const auto value = [&](int64_t i, auto... rest) {
    const Vec bias = args.bias ? Vec::load(args.bias + column + i, rest...) : Vec::zero();
    const Vec sum = Vec::load(sums + i, rest...) * scale;
    return Vec::fma(sum, Vec::load(args.scale_b + column + i, rest...), bias);
  };
  if (!args.out) {
    Sums peaks;
    sweep(n, [&](int64_t i, int part, auto... rest) {
      const Vec result = gelu(value(i, rest...));
      result.store(sums + i, rest...);
      peaks.part[part] = Vec::max_nan(peaks.part[part], Vec::abs(result));
    });
    float& block = args.scale[(row * args.columns + column) / fp8_columns];
    block = scale_of(peaks.largest_nan());
    quantize_row(sums, args.q + row * args.columns + column, n, block);
    return;
  }
  const auto store = [&](auto* out) {
    sweep(n, [&](int64_t i, int, auto... rest) { value(i, rest...).store(out + i, rest...); });
  };
  const int64_t offset = row * args.columns + column;
  args.half ? store(static_cast<bf16*>(args.out) + offset)
            : store(static_cast<float*>(args.out) + offset);
}

}  // namespace

void widen_fp8(const Fp8Gemm& args, int64_t begin, int64_t end) {
  const Aligned<bf16> scratch(fp8_rows * depth_step);
  for (int64_t start = 0; start < args.depth; start += depth_step) {
    const int64_t depth = std::min(depth_step, args.depth - start);
    for (int64_t row = begin * fp8_rows; row < end * fp8_rows && row < args.count;
         row += fp8_rows) {
      const int64_t count = std::min(fp8_rows, args.count - row);
      widen_panels<tile_rows>(
          args.a, args.depth, args.first + row, count, start, depth, scratch,
          widened(args, row, start, depth));
    }
  }
}

void fp8_gemm(const Fp8Gemm& args, int64_t begin, int64_t end) {
  const Aligned<bf16> scratch(fp8_columns * depth_step);
  const Aligned<packed_t<bf16>> b(fp8_columns * depth_step);
  const Aligned<float> sums(round_up(args.count, tile_rows) * fp8_columns);
  if (args.depth == 0) std::fill_n(static_cast<float*>(sums), args.count * fp8_columns, 0.0f);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t column = group * fp8_columns;
    const int64_t columns = std::min(fp8_columns, args.columns - column);
    for (int64_t start = 0; start < args.depth; start += depth_step) {
      const int64_t depth = std::min(depth_step, args.depth - start);
      widen_panels<tile_columns>(args.b, args.depth, column, columns, start, depth, scratch, b);
      multiply(args, columns, start, depth, b, sums);
    }
    for (int64_t row = 0; row < args.count; ++row) {
      finish(args, args.first + row, column, columns, sums + row * fp8_columns);
    }
  }
}

}  // namespace livetalk::LIVETALK_ISA
