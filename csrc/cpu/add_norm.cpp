// add_norm: rows [begin, end). A row and its fp32 sum stay in the level-1 cache over both passes.
#include "cpu/add_norm.h"

#include <vector>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width;

template <class T, bool gated>
void rows(const AddNorm& args, int64_t begin, int64_t end) {
  const int64_t width = args.width, body = width - width % W, tail = width - body;
  std::vector<float> sums(static_cast<size_t>(width + W));
  float* sum = sums.data();
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * width;
    const T* y = static_cast<const T*>(args.y) + row * width;
    T* x_new = static_cast<T*>(args.x_new) + row * width;
    T* h = static_cast<T*>(args.h) + row * width;

    // The norm sees the sum as it is stored. Lanes beyond the row are zero.
    Vec total = Vec::zero();
    const auto add = [&](int64_t i, auto... n) {
      const Vec branch = Vec::load(y + i, n...), stream = Vec::load(x + i, n...);
      const Vec value = gated ? Vec::fma(branch, Vec::load(args.gate + i, n...), stream)
                              : stream + branch;
      value.store(x_new + i, n...);
      const Vec stored = Vec::load(x_new + i, n...);
      stored.store(sum + i);
      total = total + stored;
    };
    for (int64_t i = 0; i < body; i += W) add(i);
    if (tail) add(body, tail);
    float mean = total.sum() / static_cast<float>(width);

    // The variance around the mean: the mean square would lose it where the mean is large. What
    // the deviations add up to is the rounding error of the mean, and mends it.
    Vec squares = Vec::zero(), deviations = Vec::zero();
    for (int64_t i = 0; i < body; i += W) {
      const Vec centred = Vec::load(sum + i) - Vec::all(mean);
      squares = Vec::fma(centred, centred, squares);
      deviations = deviations + centred;
    }
    float square = squares.sum(), deviation = deviations.sum();
    for (int64_t i = body; i < width; ++i) {
      const float centred = sum[i] - mean;
      square += centred * centred;
      deviation += centred;
    }
    deviation /= static_cast<float>(width);
    mean += deviation;
    const float variance = square / static_cast<float>(width) - deviation * deviation;
    const Vec centre = Vec::all(mean), inverse = Vec::all(1.0f / std::sqrt(variance + args.eps));

    const auto norm = [&](int64_t i, auto... n) {
      const Vec unit = (Vec::load(sum + i, n...) - centre) * inverse;
      Vec::fma(unit, Vec::load(args.weight + i, n...), Vec::load(args.bias + i, n...))
          .store(h + i, n...);
    };
    for (int64_t i = 0; i < body; i += W) norm(i);
    if (tail) norm(body, tail);
  }
}

}  // namespace

void add_norm(const AddNorm& args, int64_t begin, int64_t end) {
  if (args.half) {
    args.gate ? rows<bf16, true>(args, begin, end) : rows<bf16, false>(args, begin, end);
  } else {
    args.gate ? rows<float, true>(args, begin, end) : rows<float, false>(args, begin, end);
  }
}

}  // namespace livetalk::LIVETALK_ISA
