// causal_conv3d with any taps and strides, as a matrix product of gathered pixels and the weight.
//
// A block of output pixels is multiplied by all panels of outputs, a few taps at a time: the pixels
// that these taps see are gathered once, in groups of R that lie together, and the taps' weights
// of a panel stay in the cache while the groups are multiplied by them. Sums wait in memory
// between. bf16 is multiplied in pairs where the processor does that, and widened elsewhere.
#include <type_traits>

#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
// Pixels and outputs of one inner product: 2 * R sums beside 2 weights and an input.
constexpr int64_t R = W == 16 ? 14 : W == 8 ? 6 : 4;
constexpr int64_t C = 2 * W;
constexpr int64_t max_groups = 224 / R;  // pixels that the weights are read once for
constexpr int64_t max_depth = 512;       // inputs, over taps, that are multiplied at a time
static_assert(P % C == 0 && L % W == 0 && R <= conv3d_rows);

template <class T>
using Word = typename Packed<T>::type;  // what pixels and weights are multiplied as

// The channels of pixels at some taps: [group][tap][chunk][R][L], zeros beyond the channels. The
// result says which groups see anything but zeros.
template <class T>
void gather(
    const CausalConv3d& args, int64_t begin, int64_t count, int64_t first_tap, int64_t tap_count,
    const T* zeros, Word<T>* to, bool* seen) {
  const int64_t chunks = conv3d_chunks(args.inputs), groups = (count + R - 1) / R;
  std::fill_n(seen, groups, false);
  for (int64_t n = 0; n < groups * R; ++n) {
    int64_t place = begin + std::min(n, count - 1);  // a last group repeats its last pixel
    const int64_t column = place % args.columns;
    place /= args.columns;
    const int64_t row = place % args.rows;
    place /= args.rows;
    const int64_t frame = place % args.frames, batch = place / args.frames;
    for (int64_t i = 0; i < tap_count; ++i) {
      const int64_t tap = first_tap + i;
      const T* pixel = find_pixel<T>(
          args, batch, frame * args.stride[0] + tap / (args.taps[1] * args.taps[2]),
          row * args.stride[1] + tap / args.taps[2] % args.taps[1],
          column * args.stride[2] + tap % args.taps[2], zeros);
      seen[n / R] |= pixel != zeros;
      Word<T>* own = to + ((n / R * tap_count + i) * chunks * R + n % R) * L;
      for (int64_t channel = 0; channel < chunks * L; channel += L, own += R * L) {
        const int64_t left = std::min(L, args.inputs - channel);
        if constexpr (std::is_same_v<T, Word<T>>) {
          if (left == L) {
            std::memcpy(own, pixel + channel, L * sizeof(T));
          } else {
            std::memcpy(own, pixel + channel, static_cast<size_t>(left) * sizeof(T));
            std::memset(own + left, 0, static_cast<size_t>(L - left) * sizeof(T));
          }
        } else {
          for (int64_t k = 0; k < L; ++k) own[k] = k < left ? widen(pixel[channel + k]) : 0.0f;
        }
      }
    }
  }
}

// sum [R, C] += v [depth, R] u [depth, C], or = without `add`.
template <class T>
__attribute__((noinline)) void multiply(
    const Word<T>* v, const Word<T>* u, int64_t depth, float* sum, bool add) {
  constexpr int64_t G = Packed<T>::group;
  Vec sums[R][2];
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0] = add ? Vec::load(sum + r * C) : Vec::zero();
    sums[r][1] = add ? Vec::load(sum + r * C + W) : Vec::zero();
  }
  for (int64_t chunk = 0; chunk < depth; chunk += L, v += R * L, u += L * P) {
#pragma GCC unroll 2
    for (int64_t k = 0; k < L; k += G) {
      const float* row = reinterpret_cast<const float*>(u + k * P);
      const Vec first = Vec::load(row), second = Vec::load(row + W);
#pragma GCC unroll 16
      for (int64_t r = 0; r < R; ++r) {
        const Vec value = Packed<T>::repeat(v + r * L + k);
        sums[r][0] = Packed<T>::multiply(value, first, sums[r][0]);
        sums[r][1] = Packed<T>::multiply(value, second, sums[r][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0].store(sum + r * C);
    sums[r][1].store(sum + r * C + W);
  }
}

// The weights of a panel as they are multiplied: where they lie, or widened into `work`.
template <class T>
const Word<T>* find_weights(const T* packed, int64_t depth, Word<T>* work) {
  if constexpr (std::is_same_v<T, Word<T>>) {
    return packed;
  } else {
    for (int64_t k = 0; k < depth; k += 2) {
      for (int64_t column = 0; column < P; column += W) {
        Vec even, odd;
        load_rows(packed + k * P, column, even, odd);
        even.store(work + k * P + column);
        odd.store(work + (k + 1) * P + column);
      }
    }
    return work;
  }
}

// What a thread works in.
template <class T>
struct Workspace {
  explicit Workspace(const DirectConv3d& args, int64_t taps)
      : pixels(max_groups * R * taps * args.depth()),
        weights(std::is_same_v<T, Word<T>> ? 1 : taps * args.depth() * P),
        sums(max_groups * R * args.panels() * P),
        zeros(args.depth()) {
    std::fill_n(static_cast<T*>(zeros), args.depth(), T{});
  }

  Aligned<Word<T>> pixels, weights;
  Aligned<float> sums;  // [panel][P / C][group][R][C]
  Aligned<T> zeros;
};

template <class T>
void store(
    const DirectConv3d& args, const float* sums, int64_t begin, int64_t count, int64_t first,
    int64_t end) {
  const auto store_rows = [&](const float* sum, int64_t channel, auto... n) {
    const Vec bias = args.bias ? Vec::load(args.bias + channel, n...) : Vec::zero();
    T* out = static_cast<T*>(args.out) + begin * args.outputs + channel;
    for (int64_t pixel = 0; pixel < count; ++pixel, sum += C, out += args.outputs) {
      (Vec::load(sum) + bias).store(out, n...);
    }
  };
  const int64_t groups = (count + R - 1) / R;
  for (int64_t column = first * P; column < std::min(end * P, args.outputs); column += W) {
    const float* sum = sums + (column - first * P) / C * groups * R * C + column % C;
    const int64_t left = args.outputs - column;
    left >= W ? store_rows(sum, column) : store_rows(sum, column, left);
  }
}

template <class T>
void convolve(const DirectConv3d& args, int64_t begin, int64_t end) {
  const int64_t depth = args.depth(), all_taps = args.all_taps(), panels = args.panels();
  const int64_t taps = std::clamp<int64_t>(max_depth / depth, 1, all_taps);
  Workspace<T> work(args, taps);
  const int64_t all_groups = (args.pixels() + R - 1) / R;
  for (; begin < end; ++begin) {
    const int64_t block = begin / args.parts, part = begin % args.parts;
    const int64_t group = block * all_groups / args.blocks;
    const int64_t pixel = group * R;
    const int64_t count =
        std::min((block + 1) * all_groups / args.blocks * R, args.pixels()) - pixel;
    const int64_t groups = (count + R - 1) / R;
    const int64_t first = part * panels / args.parts, last = (part + 1) * panels / args.parts;
    bool seen[max_groups], begun[max_groups] = {};
    for (int64_t tap = 0; tap < all_taps; tap += taps) {
      const int64_t tap_count = std::min(taps, all_taps - tap), own_depth = tap_count * depth;
      gather<T>(args, pixel, count, tap, tap_count, work.zeros, work.pixels, seen);
      if (std::none_of(seen, seen + groups, [](bool some) { return some; })) continue;
      for (int64_t panel = first; panel < last; ++panel) {
        const T* packed = static_cast<const T*>(args.packed) + (panel * all_taps + tap) * depth * P;
        const Word<T>* u = find_weights<T>(packed, own_depth, work.weights);
        for (int64_t column = 0; column < P; column += C) {
          if (panel * P + column >= args.outputs) break;
          float* sums = work.sums + ((panel - first) * P + column) * groups * R;
          for (int64_t n = 0; n < groups; ++n) {
            if (!seen[n]) continue;
            const Word<T>* v = work.pixels + n * R * own_depth;
            multiply<T>(
                v, u + column * Packed<T>::group, own_depth, sums + n * R * C, begun[n]);
          }
        }
      }
      for (int64_t n = 0; n < groups; ++n) begun[n] |= seen[n];
    }
    for (int64_t n = 0; n < groups; ++n) {  // that see nothing but zeros
      if (begun[n]) continue;
      for (int64_t c = 0; c < (last - first) * P; c += C) {
        std::fill_n(work.sums + (c * groups + n * C) * R, R * C, 0.0f);
      }
    }
    store<T>(args, work.sums, pixel, count, first, last);
  }
}

}  // namespace

void conv3d_direct(const DirectConv3d& args, int64_t begin, int64_t end) {
  args.half ? convolve<bf16>(args, begin, end) : convolve<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
