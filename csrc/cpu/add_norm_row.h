// The first half of add_norm and add_norm_quant: the sum of a row, and its mean and deviation.
#pragma once

#include <algorithm>

#include "cpu/add_norm.h"
#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {

struct Moments {
  Vec mean, inverse;  // inverse = 1 / sqrt(variance + eps), in every lane
};

// Writes x' = x + gate * y and keeps it in `sum` as fp32: the norm sees it as it is stored. `sum`
// has room for whole vectors.
template <class T, bool gated, bool streamed>
Moments add_row(const AddNorm& args, int64_t row, float* sum) {
  const int64_t width = args.width, padded = (width + Vec::width - 1) / Vec::width * Vec::width;
  const T* x = static_cast<const T*>(args.x) + row * width;
  const T* y = static_cast<const T*>(args.y) + row * width;
  T* x_new = static_cast<T*>(args.x_new) + row * width;

  Sums total;  // lanes beyond the row are zero
  sweep(width, [&](int64_t i, int part, auto... rest) {
    const Vec branch = Vec::load(y + i, rest...), stream = Vec::load(x + i, rest...);
    Vec value = stream + branch;
    if constexpr (gated) value = Vec::fma(branch, Vec::load(args.gate + i, rest...), stream);
    const Vec stored = put<streamed>(value, x_new + i, rest...);
    stored.store(sum + i);
    total.part[part] = total.part[part] + stored;
  });
  float mean = total.total() / static_cast<float>(width);

  // The variance around the mean: the mean square would lose it where the mean is large. What
  // the deviations add up to is the rounding error of the mean, and mends it.
  std::fill(sum + width, sum + padded, mean);
  Sums squares, deviations;
  sweep(padded, [&](int64_t i, int part, auto...) {
    const Vec centred = Vec::load(sum + i) - Vec::all(mean);
    squares.part[part] = Vec::fma(centred, centred, squares.part[part]);
    deviations.part[part] = deviations.part[part] + centred;
  });
  const float deviation = deviations.total() / static_cast<float>(width);
  mean += deviation;
  const float square = squares.total() / static_cast<float>(width);
  const float variance = std::max(square - deviation * deviation, 0.0f);
  return {Vec::all(mean), Vec::all(1.0f / std::sqrt(variance + args.eps))};
}

// Asks for the next row's element i while this row is finished.
template <class T>
inline void prefetch_next(const AddNorm& args, int64_t row, int64_t i, int part) {
  const int64_t next = (row + 1) * args.width + i;
  prefetch(static_cast<const T*>(args.x) + next, part);
  prefetch(static_cast<const T*>(args.y) + next, part);
}

}  // namespace livetalk::LIVETALK_ISA
