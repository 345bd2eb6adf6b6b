// rms_norm_rope: tokens [begin, end) of all batches, counted through. A row is still in the cache
// when it is read again; the rotation of a token is spread out once for all heads of q and k.
#include "cpu/rms_norm_rope.h"

#include <vector>

#include "cpu/rms_row.h"

namespace livetalk::LIVETALK_ISA {
namespace {

// (a, b) -> (a cos - b sin, b cos + a sin) is x * cosines + swapped x * sines.
struct Rotation {
  std::vector<float> cosines, sines;  // cos, cos, ... and -sin, sin, ... of each pair

  explicit Rotation(int64_t size)
      : cosines(static_cast<size_t>(size)), sines(static_cast<size_t>(size)) {}

  void set(const float* cos, const float* sin) {
    for (size_t i = 0; i < cosines.size(); i += 2) {
      cosines[i] = cosines[i + 1] = cos[i / 2];
      sines[i] = -sin[i / 2];
      sines[i + 1] = sin[i / 2];
    }
  }
};

template <class T, bool streamed>
void norm_and_turn(
    const RmsNormRope& args, const RmsNormRope::Side& side, const Rotation& rotation, int64_t row) {
  const T* x = static_cast<const T*>(side.x) + row / args.tokens * side.batch_stride +
               row % args.tokens * side.row_stride;
  T* out = static_cast<T*>(side.out) + row * args.row_pitch;
  const float *weight = side.weight, *cosines = rotation.cosines.data(),
              *sines = rotation.sines.data();
  const Vec inverse = inverse_rms(x, args.heads * args.head_size, args.eps);
  for (int64_t head = 0; head < args.heads; ++head) {
    sweep(args.head_size, [&](int64_t i, int part, auto... rest) {
      prefetch(x + side.row_stride + i, part);  // the next row, while this one is finished
      const Vec unit = Vec::load(x + i, rest...) * inverse;
      const Vec value = unit * Vec::load(weight + i, rest...);
      const Vec turned = value.swap_pairs() * Vec::load(sines + i, rest...);
      put<streamed>(
          Vec::fma(value, Vec::load(cosines + i, rest...), turned), out + i, rest...);
    });
    x += args.head_size;
    weight += args.head_size;
    out += args.head_pitch;
  }
}

template <class T, bool streamed>
void rows(const RmsNormRope& args, int64_t begin, int64_t end) {
  Rotation rotation(args.head_size);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = (args.row_offset + row % args.tokens) * (args.head_size / 2);
    rotation.set(args.cos + at, args.sin + at);
    norm_and_turn<T, streamed>(args, args.q, rotation, row);
    norm_and_turn<T, streamed>(args, args.k, rotation, row);
  }
  if constexpr (streamed) fence();
}

template <class T>
void rows(const RmsNormRope& args, int64_t begin, int64_t end) {
  args.stream ? rows<T, true>(args, begin, end) : rows<T, false>(args, begin, end);
}

}  // namespace

void rms_norm_rope(const RmsNormRope& args, int64_t begin, int64_t end) {
  args.half ? rows<bf16>(args, begin, end) : rows<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
