// A register-tiled matrix product for one instruction set: c[m, n] = sum_k a[m, k] b[k, n] in fp32.
//
// Operands are packed first, then multiplied tile by tile, tile_rows x tile_columns each:
//
//   pack_rows<tile_rows>(a, stride, rows, depth, packed_a);          // a[m, k], k contiguous
//   pack_rows<tile_columns>(b_t, stride, columns, depth, packed_b);  // b[k, n] = b_t[n, k]
//   multiply_tile<T>(depth, panel_of_a, panel_of_b, start, finish);
//
// A packed operand is a row of panels of `width` rows (of a) or columns (of b), each panel
// [depth / G, width, G] with zeros where the operand ends; panel i starts at
// i * panel_size<T>(width, depth). T is the type of the source, float or bf16. fp32 stays fp32
// (G = 1); bf16 stays bf16 in pairs along k (G = 2) if the processor multiplies such pairs (AVX-512
// with bf16), and is widened to fp32 otherwise: Packed<T>. Operands are aligned to 64 bytes.
//
// multiply_tile keeps its sums in registers. They start as start(i, j), the Vec of row i and
// columns [j W, (j + 1) W), and are passed to finish(i, j, sum), for i < tile_rows and
// j < tile_vectors; so a caller can split k, scale or add a bias without another pass. Rows and
// columns beyond the operands are multiplied too, as zeros: start and finish decide what to do with
// them.
#pragma once

#include <new>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

// A tile's sums fill half the vector registers; filling more is no faster, since the latency of a
// fused multiply-add is the limit.
constexpr int64_t tile_vectors = 2;
constexpr int64_t tile_columns = tile_vectors * Vec::width;
constexpr int64_t tile_rows = Vec::width == 16 ? 8 : 4;
static_assert(Vec::width % tile_rows == 0, "pack_rows cuts transposed vectors into whole panels");

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// How a packed operand holds elements of T: `type`, in words of `group` elements along k.
template <class T>
struct Packed {
  using type = float;
  static constexpr int64_t group = 1;

  // The first n of W words of consecutive elements of a source; zeros beyond.
  static Vec load(const T* p, int64_t n) {
    return n < Vec::width ? Vec::load(p, n) : Vec::load(p);
  }
  // The words formed by the first n of W columns of `rows` rows; zeros beyond.
  static Vec join(const T* p, int64_t, int64_t, int64_t n) { return load(p, n); }
  // W words, formed from row(g) for g < group.
  template <class Row>
  static void store(Row row, type* p) {
    row(0).store(p);
  }
  // The word at p, W times.
  static Vec repeat(const type* p) { return Vec::all(*p); }
  // sum + a * b, word by word.
  static Vec multiply(Vec a, Vec b, Vec sum) { return Vec::fma(a, b, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Packed<bf16> {
  using type = bf16;
  static constexpr int64_t group = 2;

  static Vec load(const bf16* p, int64_t n) {
    const __mmask32 mask = n < 32 ? (1u << n) - 1u : ~0u;
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p))};
  }
  static Vec join(const bf16* p, int64_t stride, int64_t rows, int64_t n) {
    const __mmask16 mask = n < 16 ? Vec::mask(n) : ~__mmask16{0};
    const __m256i even = _mm256_maskz_loadu_epi16(mask, p);
    const __m256i odd = _mm256_maskz_loadu_epi16(rows > 1 ? mask : __mmask16{0}, p + stride);
    return {_mm512_castsi512_ps(_mm512_or_si512(
        _mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)))};
  }
  template <class Row>
  static void store(Row row, bf16* p) {
    const Vec even = row(0), odd = row(1);
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.v, even.v));
    const __m512i low_high = _mm512_set_epi32(
        0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007,
        0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(low_high, halves));
  }
  static Vec repeat(const bf16* p) {
    int pair;
    std::memcpy(&pair, p, sizeof pair);
    return {_mm512_castsi512_ps(_mm512_set1_epi32(pair))};
  }
  static Vec multiply(Vec a, Vec b, Vec sum) {
    return {_mm512_dpbf16_ps(
        sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};
#endif

template <class T>
using packed_t = typename Packed<T>::type;

// Uninitialised memory for operands.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t size)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), alignment))) {}
  ~Aligned() { ::operator delete(data_, alignment); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  operator T*() const { return data_; }

 private:
  static constexpr std::align_val_t alignment{64};
  T* data_;
};

// Number of words of a packed operand along k.
template <class T>
constexpr int64_t words(int64_t depth) {
  return (depth + Packed<T>::group - 1) / Packed<T>::group;
}

// Number of elements in a panel.
template <class T>
constexpr int64_t panel_size(int64_t width, int64_t depth) {
  return width * words<T>(depth) * Packed<T>::group;
}

// W x W 32-bit words in place: word j of rows[i] becomes word i of rows[j].
inline void transpose(Vec* rows) {
#if defined(__AVX512F__)
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 even0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    const __m512 odd0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 even1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    rows[i].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
    rows[i + 4].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
    rows[i + 8].v = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    rows[i + 12].v = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
#elif defined(__AVX2__)
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
#else
  for (int i = 0; i < Vec::width; ++i) {
    for (int j = 0; j < i; ++j) {
      const float word = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = word;
    }
  }
#endif
}

// Stores a row of W words into panels `panel` elements apart; skips those from `end` on.
template <int64_t width, class T>
inline void store_row(Vec row, packed_t<T>* to, int64_t panel, int64_t end) {
  constexpr int64_t W = Vec::width;
  if constexpr (width >= W) {
    row.store(reinterpret_cast<float*>(to));
  } else {
    float values[W];
    row.store(values);
    for (int64_t first = 0; first < W && first < end; first += width, to += panel) {
      std::memcpy(to, values + first, width * sizeof(float));
    }
  }
}

// Packs source[row, k], rows `stride` elements apart and k contiguous, into panels of `width` rows.
template <int64_t width, class T>
void pack_rows(
    const T* source, int64_t stride, int64_t rows, int64_t depth, packed_t<T>* packed) {
  constexpr int64_t W = Vec::width, G = Packed<T>::group;
  static_assert(width % W == 0 || W % width == 0);
  const int64_t padded = round_up(rows, width), panel = panel_size<T>(width, depth);
  for (int64_t row = 0; row < padded; row += W) {
    packed_t<T>* panels = packed + row / width * panel + row % width * G;
    for (int64_t k = 0; k < depth; k += W * G) {
      Vec block[W];
      for (int64_t i = 0; i < W; ++i) {
        block[i] = row + i < rows ? Packed<T>::load(source + (row + i) * stride + k, depth - k)
                                  : Vec::zero();
      }
      transpose(block);
      const int64_t count = words<T>(depth - k);
      for (int64_t i = 0; i < W && i < count; ++i) {
        store_row<width, T>(block[i], panels + k * width + i * width * G, panel, padded - row);
      }
    }
  }
}

// Packs source[k, column], k `stride` elements apart and columns contiguous, into panels of
// `width` columns.
template <int64_t width, class T>
void pack_columns(
    const T* source, int64_t stride, int64_t columns, int64_t depth, packed_t<T>* packed) {
  constexpr int64_t W = Vec::width, G = Packed<T>::group;
  static_assert(width % W == 0 || W % width == 0);
  const int64_t padded = round_up(columns, width), panel = panel_size<T>(width, depth);
  for (int64_t k = 0; k < depth; k += G, source += G * stride) {
    for (int64_t column = 0; column < padded; column += W) {
      packed_t<T>* panels = packed + column / width * panel + column % width * G;
      const Vec row = Packed<T>::join(source + column, stride, depth - k, columns - column);
      store_row<width, T>(row, panels + k * width, panel, padded - column);
    }
  }
}

// One tile: a is a panel of tile_rows rows, b one of tile_columns columns, of which the first
// `vectors` vectors are multiplied. Not inlined, or callers' vectors would take its registers.
template <class T, int64_t vectors = tile_vectors, class Start, class Finish>
__attribute__((noinline)) void multiply_tile(
    int64_t depth, const packed_t<T>* a, const packed_t<T>* b, const Start& start,
    const Finish& finish) {
  constexpr int64_t G = Packed<T>::group;
  Vec sums[tile_rows][vectors];
#pragma GCC unroll 8
  for (int64_t i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < vectors; ++j) sums[i][j] = start(i, j);
  }
  const int64_t count = words<T>(depth);
  for (int64_t k = 0; k < count; ++k, a += tile_rows * G, b += tile_columns * G) {
    Vec right[vectors];
#pragma GCC unroll 8
    for (int64_t j = 0; j < vectors; ++j) {
      right[j] = Vec::load(reinterpret_cast<const float*>(b) + j * Vec::width);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < tile_rows; ++i) {
      const Vec left = Packed<T>::repeat(a + i * G);
#pragma GCC unroll 8
      for (int64_t j = 0; j < vectors; ++j) {
        sums[i][j] = Packed<T>::multiply(left, right[j], sums[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < vectors; ++j) finish(i, j, sums[i][j]);
  }
}

}  // namespace livetalk::LIVETALK_ISA
