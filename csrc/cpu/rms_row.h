// What rms_norm and rms_norm_rope share.
#pragma once

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

// 1 / sqrt(mean(x^2) + eps) of a row, in every lane.
template <class T>
inline Vec inverse_rms(const T* x, int64_t width, float eps) {
  Sums squares;
  sweep(width, [&](int64_t i, int part, auto... rest) {
    const Vec value = Vec::load(x + i, rest...);
    squares.part[part] = Vec::fma(value, value, squares.part[part]);
  });
  return Vec::all(1.0f / std::sqrt(squares.total() / static_cast<float>(width) + eps));
}

}  // namespace livetalk::LIVETALK_ISA
