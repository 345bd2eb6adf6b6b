// Vectors of fp32 for one instruction set: AVX-512 (with or without bf16), AVX2, or plain C++.
//
// A source in csrc/cpu is compiled once per instruction set; LIVETALK_ISA names the namespace of
// its symbols. All arithmetic is fp32; bf16 exists only in memory, except for dot products.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef LIVETALK_ISA
#error "LIVETALK_ISA must be scalar, avx2, avx512 or avx512_bf16"
#endif

namespace livetalk::LIVETALK_ISA {

// Storage of a bfloat16: the upper half of an fp32.
struct bf16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest even; a NaN stays a NaN.
template <class T>
inline T narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bf16 narrow<bf16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// FP8 e4m3: clamp to +-448, round to nearest even; a NaN becomes 0x7f with its sign.
inline uint8_t e4m3(float x) {
  float size = std::fabs(x);
  if (size > 448.0f) size = 448.0f;
  // Below 2^-6 values are 2^-9 apart, like those of fp32 from 2^14 on: the sum is rounded
  // correctly. Above, the exponent's bias shrinks from 127 to 7 and 20 bits are rounded off.
  const float shifted = size + 16384.0f;
  uint32_t bits, small, sign;
  std::memcpy(&bits, &size, sizeof bits);
  std::memcpy(&small, &shifted, sizeof small);
  std::memcpy(&sign, &x, sizeof sign);
  uint32_t code = (bits - (120u << 23) + 0x7ffffu + ((bits >> 20) & 1u)) >> 20;
  if (code > 0x7fu) code = 0x7fu;
  if (size < 0.015625f) code = small - 0x46800000u;
  return static_cast<uint8_t>(code | ((sign >> 24) & 0x80u));
}

#if defined(__AVX512F__)

struct Vec {
  static constexpr int64_t width = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static Vec load(const bf16* p, int64_t n) {
    return widened(_mm256_maskz_loadu_epi16(mask(n), p));
  }
  static Vec widened(__m256i half) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  // The first and the second element of each pair.
  static void load_pairs(const bf16* p, Vec& even, Vec& odd) {
    const __m512i pairs = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd.v = _mm512_castsi512_ps(
        _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
#if defined(__AVX512BF16__)
  __m256i half() const {
    const __mmask16 denormal = _mm512_fpclass_ps_mask(v, 0x20);
    if (denormal) [[unlikely]] {  // vcvtneps2bf16 would flush them
      const __m512i bits = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
      const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      const __m256i exact = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
      return _mm256_mask_mov_epi16((__m256i)_mm512_cvtneps_pbh(v), denormal, exact);
    }
    return (__m256i)_mm512_cvtneps_pbh(v);
  }
#else
  __m256i half() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i rounded = _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
#endif
  // A store returns the values as stored.
  Vec store(float* p) const {
    _mm512_storeu_ps(p, v);
    return *this;
  }
  Vec store(bf16* p) const {
    const __m256i bits = half();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
    return widened(bits);
  }
  Vec store(float* p, int64_t n) const {
    _mm512_mask_storeu_ps(p, mask(n), v);
    return *this;
  }
  Vec store(bf16* p, int64_t n) const {
    const __m256i bits = half();
    _mm256_mask_storeu_epi16(p, mask(n), bits);
    return widened(bits);
  }
  // Bypass the caches, for results too large for them; p must be aligned to the stored size. Call
  // `fence` afterwards.
  Vec stream(float* p) const {
    _mm512_stream_ps(p, v);
    return *this;
  }
  Vec stream(bf16* p) const {
    const __m256i bits = half();
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
    return widened(bits);
  }
  // As `e4m3`.
  __m128i eighth() const {
    const __m512 size = _mm512_min_ps(_mm512_set1_ps(448.0f), _mm512_abs_ps(v));
    const __m512i bits = _mm512_castps_si512(size);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(
        _mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7ffff - (120 << 23)));
    const __m512i normal =
        _mm512_min_epu32(_mm512_srli_epi32(sum, 20), _mm512_set1_epi32(0x7f));
    const __m512i small = _mm512_sub_epi32(
        _mm512_castps_si512(_mm512_add_ps(size, _mm512_set1_ps(16384.0f))),
        _mm512_set1_epi32(0x46800000));
    const __mmask16 below = _mm512_cmp_ps_mask(size, _mm512_set1_ps(0.015625f), _CMP_LT_OQ);
    const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(v), 24);
    // code | (sign & 0x80)
    return _mm512_cvtepi32_epi8(_mm512_ternarylogic_epi32(
        _mm512_mask_mov_epi32(normal, below, small), sign, _mm512_set1_epi32(0x80), 0xf8));
  }
  void store_e4m3(uint8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), eighth()); }
  void store_e4m3(uint8_t* p, int64_t n) const { _mm_mask_storeu_epi8(p, mask(n), eighth()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  static Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
  // 1 / a to about 1 ulp, for a in [2^-125, 2^125].
  static Vec reciprocal(Vec a) {
    const __m512 guess = _mm512_rcp14_ps(a.v);
    const __m512 error = _mm512_fnmadd_ps(a.v, guess, _mm512_set1_ps(1.0f));
    return {_mm512_fmadd_ps(guess, error, guess)};
  }
  // a < b ? yes : no
  static Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), yes.v)};
  }
  // The larger of two non-negative numbers; NaN is the largest of all.
  static Vec max_nan(Vec a, Vec b) {
    return {_mm512_castsi512_ps(
        _mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
  }
  // Swap neighbours 2i and 2i + 1.
  Vec swap_pairs() const { return {_mm512_permute_ps(v, 0xb1)}; }
  // Round to the nearest integer, ties to even.
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  // a * 2^n for integral n in [-126, 127].
  static Vec scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float largest() const { return _mm512_reduce_max_ps(v); }
  float largest_nan() const {
    return _mm_cvtss_f32(
        _mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_castps_si512(v)))));
  }
};

#elif defined(__AVX2__)

struct Vec {
  static constexpr int64_t width = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vec widened(__m128i half) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static void load_pairs(const bf16* p, Vec& even, Vec& odd) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    odd.v = _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  template <class T>
  static Vec load(const T* p, int64_t n) {
    T copy[width] = {};
    std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
    return load(copy);
  }
  __m128i half() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i rounded = _mm256_srli_epi32(_mm256_blendv_epi8(sum, quiet, nan), 16);
    const __m256i packed = _mm256_packus_epi32(rounded, rounded);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  Vec store(float* p) const {
    _mm256_storeu_ps(p, v);
    return *this;
  }
  Vec store(bf16* p) const {
    const __m128i bits = half();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
    return widened(bits);
  }
  template <class T>
  Vec store(T* p, int64_t n) const {
    T copy[width];
    const Vec stored = store(copy);
    std::memcpy(p, copy, static_cast<size_t>(n) * sizeof(T));
    return stored;
  }
  Vec stream(float* p) const {
    _mm256_stream_ps(p, v);
    return *this;
  }
  Vec stream(bf16* p) const {
    const __m128i bits = half();
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), bits);
    return widened(bits);
  }
  void store_e4m3(uint8_t* p) const {
    const __m256 size = _mm256_min_ps(_mm256_set1_ps(448.0f), abs(*this).v);
    const __m256i bits = _mm256_castps_si256(size);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(
        _mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7ffff - (120 << 23)));
    const __m256i normal =
        _mm256_min_epu32(_mm256_srli_epi32(sum, 20), _mm256_set1_epi32(0x7f));
    const __m256i small = _mm256_sub_epi32(
        _mm256_castps_si256(_mm256_add_ps(size, _mm256_set1_ps(16384.0f))),
        _mm256_set1_epi32(0x46800000));
    const __m256 below = _mm256_cmp_ps(size, _mm256_set1_ps(0.015625f), _CMP_LT_OQ);
    const __m256i code = _mm256_blendv_epi8(normal, small, _mm256_castps_si256(below));
    const __m256i sign = _mm256_and_si256(
        _mm256_srli_epi32(_mm256_castps_si256(v), 24), _mm256_set1_epi32(0x80));
    const __m256i words = _mm256_packus_epi32(_mm256_or_si256(code, sign), _mm256_setzero_si256());
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const int32_t halves[2] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
    std::memcpy(p, halves, sizeof halves);
  }
  void store_e4m3(uint8_t* p, int64_t n) const {
    uint8_t copy[width];
    store_e4m3(copy);
    std::memcpy(p, copy, static_cast<size_t>(n));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  static Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
  static Vec reciprocal(Vec a) { return all(1.0f) / a; }
  static Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
  }
  static Vec max_nan(Vec a, Vec b) {
    return {_mm256_castsi256_ps(
        _mm256_max_epi32(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)))};
  }
  Vec swap_pairs() const { return {_mm256_permute_ps(v, 0xb1)}; }
  static Vec round(Vec a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static Vec scale2(Vec a, Vec n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)))};
  }
  float sum() const {
    float parts[width], total = 0;
    store(parts);
    for (float part : parts) total += part;
    return total;
  }
  float largest() const {
    float parts[width];
    store(parts);
    float peak = parts[0];
    for (float part : parts) peak = part > peak ? part : peak;
    return peak;
  }
  float largest_nan() const {
    float parts[width];
    store(parts);
    float peak = parts[0];
    for (float part : parts) peak = part > peak || part != part ? part : peak;
    return peak;
  }
};

#else

// Four lanes, so that the compiler can use the baseline's vectors.
struct Vec {
  static constexpr int64_t width = 4;
  float v[width];

  template <class F>
  static Vec make(F f) {
    Vec out;
    for (int64_t i = 0; i < width; ++i) out.v[i] = f(i);
    return out;
  }
  static Vec zero() { return all(0.0f); }
  static Vec all(float x) {
    return make([&](int64_t) { return x; });
  }
  template <class T>
  static Vec load(const T* p) {
    return make([&](int64_t i) { return widen(p[i]); });
  }
  template <class T>
  static Vec load(const T* p, int64_t n) {
    return make([&](int64_t i) { return i < n ? widen(p[i]) : 0.0f; });
  }
  static void load_pairs(const bf16* p, Vec& even, Vec& odd) {
    even = make([&](int64_t i) { return widen(p[2 * i]); });
    odd = make([&](int64_t i) { return widen(p[2 * i + 1]); });
  }
  template <class T>
  Vec store(T* p) const {
    return store(p, width);
  }
  template <class T>
  Vec store(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = narrow<T>(v[i]);
    return load(p, n);
  }
  template <class T>
  Vec stream(T* p) const {
    return store(p);
  }
  void store_e4m3(uint8_t* p, int64_t n = width) const {
    for (int64_t i = 0; i < n; ++i) p[i] = e4m3(v[i]);
  }
  friend Vec operator+(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] + b.v[i]; });
  }
  friend Vec operator-(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] - b.v[i]; });
  }
  friend Vec operator*(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] * b.v[i]; });
  }
  friend Vec operator/(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] / b.v[i]; });
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    return make([&](int64_t i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static Vec max(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return make([&](int64_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec abs(Vec a) {
    return make([&](int64_t i) { return std::fabs(a.v[i]); });
  }
  static Vec sqrt(Vec a) {
    return make([&](int64_t i) { return std::sqrt(a.v[i]); });
  }
  static Vec reciprocal(Vec a) { return all(1.0f) / a; }
  static Vec select_less(Vec a, Vec b, Vec yes, Vec no) {
    return make([&](int64_t i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
  }
  static float max_nan(float a, float b) { return a > b || a != a ? a : b; }
  static Vec max_nan(Vec a, Vec b) {
    return make([&](int64_t i) { return max_nan(a.v[i], b.v[i]); });
  }
  Vec swap_pairs() const { return {v[1], v[0], v[3], v[2]}; }
  static Vec round(Vec a) {
    return make([&](int64_t i) { return std::nearbyint(a.v[i]); });
  }
  static Vec scale2(Vec a, Vec n) {
    return make([&](int64_t i) { return std::ldexp(a.v[i], static_cast<int>(n.v[i])); });
  }
  float sum() const { return (v[0] + v[1]) + (v[2] + v[3]); }
  float largest() const {
    float peak = v[0];
    for (float lane : v) peak = lane > peak ? lane : peak;
    return peak;
  }
  float largest_nan() const { return max_nan(max_nan(v[0], v[1]), max_nan(v[2], v[3])); }
};

#endif

// Call after the last `stream` of a kernel, so that other threads see it.
inline void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Stores bypassing the caches or not; a row's remainder, given by its length, never bypasses.
template <bool streamed, class T>
inline Vec put(Vec value, T* p) {
  if constexpr (streamed) return value.stream(p);
  return value.store(p);
}
template <bool streamed, class T>
inline Vec put(Vec value, T* p, int64_t n) {
  return value.store(p, n);
}

// Number of independent partial sums of a row.
constexpr int ways = 4;
struct Sums {
  Vec part[ways] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};

  float total() const { return ((part[0] + part[1]) + (part[2] + part[3])).sum(); }
  float largest_nan() const {
    return Vec::max_nan(Vec::max_nan(part[0], part[1]), Vec::max_nan(part[2], part[3]))
        .largest_nan();
  }
};

// Calls f(i, part) for the vectors of [0, n), in order, and f(i, part, rest) for the remainder.
template <class F>
inline void sweep(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + ways * Vec::width <= n; i += ways * Vec::width) {
    f(i, 0);
    f(i + Vec::width, 1);
    f(i + 2 * Vec::width, 2);
    f(i + 3 * Vec::width, 3);
  }
  for (; i + Vec::width <= n; i += Vec::width) f(i, 0);
  if (i < n) f(i, 0, n - i);
}

// Within `sweep`: prefetches, once per cache line, what will be read soon; any address is allowed.
template <class T>
inline void prefetch(const T* p, int part) {
  constexpr int64_t per_line = 64 / (Vec::width * static_cast<int64_t>(sizeof(T)));
  if (part % per_line == 0) __builtin_prefetch(p, 0, 2);
}

// 2^x to about 1 ulp; x is clamped to [-126, 126]; a NaN stays a NaN. 2^r = 1 + r p(r) for
// |r| <= 1/2, p fitted for the least relative error.
inline Vec exp2(Vec x) {
  const Vec bounded = Vec::min(Vec::all(126.0f), Vec::max(Vec::all(-126.0f), x));
  const Vec n = Vec::round(bounded), r = bounded - n;
  Vec p = Vec::all(1.5353361e-4f);
  p = Vec::fma(p, r, Vec::all(1.33988739e-3f));
  p = Vec::fma(p, r, Vec::all(9.61843692e-3f));
  p = Vec::fma(p, r, Vec::all(5.55033237e-2f));
  p = Vec::fma(p, r, Vec::all(2.40226477e-1f));
  p = Vec::fma(p, r, Vec::all(6.93147182e-1f));
  return Vec::scale2(Vec::fma(p, r, Vec::all(1.0f)), n);
}

// exp(x) to about 1 ulp: 2^n * p(r) with x = n ln 2 + r, |r| <= ln 2 / 2. x is clamped to
// [-87.3, 88.7], the normal numbers of fp32; a NaN stays a NaN.
// Coefficients: Cephes' expf (Moshier).
inline Vec exp(Vec x) {
  const Vec low = Vec::all(-87.33654f), high = Vec::all(88.72283f);
  const Vec bounded = Vec::min(high, Vec::max(low, x));
  Vec n = Vec::round(bounded * Vec::all(1.44269504f));
  n = Vec::min(n, Vec::all(127.0f));
  Vec r = Vec::fma(n, Vec::all(-0.693145752f), bounded);
  r = Vec::fma(n, Vec::all(-1.42860677e-6f), r);
  Vec p = Vec::all(1.9875691e-4f);
  p = Vec::fma(p, r, Vec::all(1.3981999e-3f));
  p = Vec::fma(p, r, Vec::all(8.3334519e-3f));
  p = Vec::fma(p, r, Vec::all(4.1665796e-2f));
  p = Vec::fma(p, r, Vec::all(1.6666666e-1f));
  p = Vec::fma(p, r, Vec::all(5.0000001e-1f));
  p = Vec::fma(p * r, r, r + Vec::all(1.0f));
  return Vec::scale2(p, n);
}

}  // namespace livetalk::LIVETALK_ISA
