// What quantises values in a row: their largest magnitude, then FP8 e4m3 with one scale.
#pragma once

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

// The scale of values up to peak. Zeros get 1; the smallest normal number keeps the scale of
// denormal values from becoming zero; a NaN stays one.
inline float scale_of(float peak) {
  constexpr float smallest = std::numeric_limits<float>::min();
  const float scale = peak / 448.0f;
  if (peak == 0.0f) return 1.0f;
  return scale < smallest ? smallest : scale;
}

template <class T>
inline void quantize_row(const T* x, uint8_t* q, int64_t n, float scale) {
  const Vec divisor = Vec::all(scale);
  sweep(n, [&](int64_t i, int, auto... rest) {
    (Vec::load(x + i, rest...) / divisor).store_e4m3(q + i, rest...);
  });
}

}  // namespace livetalk::LIVETALK_ISA
