// Vectors of fp32 for one instruction set: AVX-512 (with bf16), AVX2, or plain C++.
//
// A source in csrc/cpu is compiled once per instruction set; LIVETALK_ISA names the namespace that
// its symbols land in. All arithmetic is fp32; bf16 exists in memory only, but for dot products.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef LIVETALK_ISA
#error "LIVETALK_ISA must be scalar, avx2 or avx512"
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

#if defined(__AVX512F__)

struct Vec {
  static constexpr int64_t width = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  static Vec load(const bf16* p, int64_t n) {
    const __m256i half = _mm256_maskz_loadu_epi16(mask(n), p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  __m256i half() const {
    // By integers, not vcvtneps2bf16, which would flush denormals.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i rounded = _mm512_mask_mov_epi32(sum, nan, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half()); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  void store(bf16* p, int64_t n) const { _mm256_mask_storeu_epi16(p, mask(n), half()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  // To the nearest integer, ties to even.
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  // a * 2^n for integral n in [-126, 127].
  static Vec scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float largest() const { return _mm512_reduce_max_ps(v); }
};

#elif defined(__AVX2__)

struct Vec {
  static constexpr int64_t width = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  template <class T>
  static Vec load(const T* p, int64_t n) {
    T copy[width] = {};
    std::memcpy(copy, p, static_cast<size_t>(n) * sizeof(T));
    return load(copy);
  }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(bf16* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i rounded = _mm256_srli_epi32(_mm256_blendv_epi8(sum, quiet, nan), 16);
    const __m256i packed = _mm256_packus_epi32(rounded, rounded);
    const __m128i half = _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
  }
  template <class T>
  void store(T* p, int64_t n) const {
    T copy[width];
    store(copy);
    std::memcpy(p, copy, static_cast<size_t>(n) * sizeof(T));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
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
};

#else

// Four lanes, so that a compiler may use whatever vectors the baseline has.
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
  template <class T>
  void store(T* p) const {
    store(p, width);
  }
  template <class T>
  void store(T* p, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) p[i] = narrow<T>(v[i]);
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
};

#endif

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
