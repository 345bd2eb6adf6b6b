// causal_conv3d with any taps and strides, as a matrix product of gathered pixels and the weight.
//
// A block of output pixels is multiplied by all panels of outputs, a few chunks of inputs at a time:
// what the pixels see of these is gathered once, in groups of R that lie together, and the weights
// of a panel stay in the cache while the groups are multiplied by them. Sums wait in memory between.
// bf16 is multiplied in pairs where the processor does that, and widened elsewhere. Taps that meet
// the zero frames only are left out.
#include <type_traits>

#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
// Pixels and outputs of one inner product: 2 * R sums beside 2 weights and an input.
constexpr int64_t R = W == 16 ? 14 : W == 8 ? 6 : 4;
constexpr int64_t C = 2 * W;
constexpr int64_t max_groups = 224 / R;  // pixels that the weights are read once for
constexpr int64_t max_depth = 512;       // inputs times taps that are multiplied at a time
static_assert(P % C == 0 && L % W == 0 && R <= conv3d_rows);

template <class T>
using Word = typename Packed<T>::type;  // what pixels and weights are multiplied as

// An output pixel: the first input that it sees, counted with all borders and zero frames.
struct Place {
  int64_t batch, frame, row, column;

  Place() = default;
  Place(const CausalConv3d& args, int64_t index) {
    column = index % args.columns * args.stride[2];
    index /= args.columns;
    row = index % args.rows * args.stride[1];
    index /= args.rows;
    frame = index % args.frames * args.stride[0];
    batch = index / args.frames;
  }
};

// A chunk of a pixel's channels, zeros beyond them.
template <class T>
inline void copy(const T* pixel, int64_t channels, Word<T>* to) {
  constexpr bool same = std::is_same_v<T, Word<T>>;
  if (channels >= L) {
    if constexpr (same) {
      std::memcpy(to, pixel, L * sizeof(T));
    } else {
      for (int64_t k = 0; k < L; k += W) Vec::load(pixel + k).store(to + k);
    }
    return;
  }
  for (int64_t k = 0; k < L; ++k) {
    if constexpr (same) {
      to[k] = k < channels ? pixel[k] : T{};
    } else {
      to[k] = k < channels ? widen(pixel[k]) : 0.0f;
    }
  }
}

// Some taps of some chunks, which are `v_step` and `u_step` apart: sum [R, C] += v [L, R] u [L, C] for
// each tap of each chunk, or = without `add`.
template <class T>
__attribute__((noinline)) void multiply(
    const Word<T>* v, int64_t v_step, const Word<T>* u, int64_t u_step, int64_t chunks,
    int64_t taps, float* sum, bool add) {
  constexpr int64_t G = Packed<T>::group;
  Vec sums[R][2];
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0] = add ? Vec::load(sum + r * C) : Vec::zero();
    sums[r][1] = add ? Vec::load(sum + r * C + W) : Vec::zero();
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += v_step, u += u_step) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Word<T>*left = v + tap * R * L, *right = u + tap * L * P;
#pragma GCC unroll 2
      for (int64_t k = 0; k < L; k += G) {
        const float* row = reinterpret_cast<const float*>(right + k * P);
        const Vec first = Vec::load(row), second = Vec::load(row + W);
#pragma GCC unroll 16
        for (int64_t r = 0; r < R; ++r) {
          const Vec value = Packed<T>::repeat(left + r * L + k);
          sums[r][0] = Packed<T>::multiply(value, first, sums[r][0]);
          sums[r][1] = Packed<T>::multiply(value, second, sums[r][1]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0].store(sum + r * C);
    sums[r][1].store(sum + r * C + W);
  }
}

// Rows [0, depth) of a packed weight in fp32.
inline void widen_rows(const bf16* packed, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t column = 0; column < P; column += W) {
      Vec even, odd;
      load_rows(packed + k * P, column, even, odd);
      even.store(to + k * P + column);
      odd.store(to + (k + 1) * P + column);
    }
  }
}

// A thread's work on a block of pixels.
//
// Attributes: skipped, each group's taps that meet zero frames only; first_tap, the first one that
// is not skipped by all; active, the number of those from there on; chunks, the number that is
// multiplied at a time; pixels [tap][group][R], what the block sees; gathered [group][chunk][active
// tap][R][L]; weights, a panel of some chunks, widened; sums [P / C x panel][group][R][C].
template <class T>
struct Block {
  static constexpr bool widens = !std::is_same_v<T, Word<T>>;

  const DirectConv3d& args;
  int64_t taps, first, count, groups;  // the latter three of pixels
  int64_t first_tap, active, chunks;
  int64_t skipped[max_groups];
  Aligned<const T*> pixels;
  Aligned<Word<T>> gathered, weights;
  Aligned<float> sums;
  Aligned<T> zeros;

  explicit Block(const DirectConv3d& args)
      : args(args),
        taps(args.all_taps()),
        pixels(taps * max_groups * R),
        gathered(max_groups * R * most_depth(taps)),
        weights(widens ? most_depth(taps) * P : 1),
        sums(max_groups * R * args.panels() * P),
        zeros(args.chunks() * L) {
    std::fill_n(static_cast<T*>(zeros), args.chunks() * L, T{});
  }

  static int64_t most_depth(int64_t taps) { return std::max(max_depth, taps * L); }

  // Finds what the pixels [begin, end) of the output see; a last group repeats its last pixel.
  void find(int64_t begin, int64_t end) {
    first = begin;
    count = end - begin;
    groups = (count + R - 1) / R;
    std::fill_n(skipped, groups, taps);
    const int64_t image = args.taps[1] * args.taps[2];
    for (int64_t n = 0; n < groups * R; ++n) {
      const Place place(args, begin + std::min(n, count - 1));
      const int64_t zero_taps = std::max<int64_t>(0, args.zero_frames - place.frame) * image;
      skipped[n / R] = std::min(skipped[n / R], zero_taps);
      int64_t tap = 0;
      for (int64_t t = 0; t < args.taps[0]; ++t) {
        for (int64_t h = 0; h < args.taps[1]; ++h) {
          for (int64_t w = 0; w < args.taps[2]; ++w) {
            pixels[tap++ * groups * R + n] = find_pixel<T>(
                args, place.batch, place.frame + t, place.row + h, place.column + w, zeros);
          }
        }
      }
    }
    first_tap = *std::min_element(skipped, skipped + groups);
    active = taps - first_tap;
    chunks = std::clamp<int64_t>(max_depth / L / active, 1, args.chunks());
  }

  void gather(int64_t first_chunk, int64_t own_chunks) {
    for (int64_t tap = 0; tap < active; ++tap) {
      const T** seen = pixels + (first_tap + tap) * groups * R;
      for (int64_t n = 0; n < groups * R; ++n) {
        Word<T>* to = gathered + (n / R * own_chunks * active + tap) * R * L + n % R * L;
        for (int64_t chunk = first_chunk; chunk < first_chunk + own_chunks; ++chunk) {
          copy<T>(seen[n] + chunk * L, args.inputs - chunk * L, to);
          to += active * R * L;
        }
      }
    }
  }

  // Adds the products of gathered chunks and a panel's weights for them to the panel's sums.
  void add(int64_t first_chunk, int64_t own_chunks, int64_t panel, float* panel_sums) {
    const int64_t chunk_step = taps * L * P, v_step = active * R * L;
    const T* packed = static_cast<const T*>(args.packed) +
                      (panel * args.chunks() + first_chunk) * chunk_step + first_tap * L * P;
    const Word<T>* u;
    int64_t u_step;
    if constexpr (widens) {
      u = weights;
      u_step = active * L * P;
      for (int64_t chunk = 0; chunk < own_chunks; ++chunk) {
        widen_rows(packed + chunk * chunk_step, active * L, weights + chunk * u_step);
      }
    } else {
      u = packed;
      u_step = chunk_step;
    }
    for (int64_t column = 0; column < P; column += C) {
      if (panel * P + column >= args.outputs) break;
      for (int64_t n = 0; n < groups; ++n) {
        const int64_t skip = skipped[n] - first_tap;
        multiply<T>(
            gathered + n * own_chunks * v_step + skip * R * L, v_step,
            u + skip * L * P + column * Packed<T>::group, u_step, own_chunks, active - skip,
            panel_sums + (column * groups + n * C) * R, first_chunk > 0);
      }
    }
  }
};

// Sums of panels [panel, last) to their pixels.
template <class T>
void store(const Block<T>& block, int64_t panel, int64_t last) {
  const DirectConv3d& args = block.args;
  const int64_t first = panel * P, end = std::min(last * P, args.outputs);
  const auto store_vector = [&](int64_t n, int64_t channel, auto... left) {
    const int64_t own = channel - first;
    const Vec sum = Vec::load(block.sums + (own / C * block.groups * R + n) * C + own % C);
    const Vec bias = args.bias ? Vec::load(args.bias + channel, left...) : Vec::zero();
    (sum + bias).store(
        static_cast<T*>(args.out) + (block.first + n) * args.outputs + channel, left...);
  };
  for (int64_t n = 0; n < block.count; ++n) {
    int64_t channel = first;
    for (; channel + W <= end; channel += W) store_vector(n, channel);
    if (channel < end) store_vector(n, channel, end - channel);
  }
}

template <class T>
void convolve(const DirectConv3d& args, int64_t begin, int64_t end) {
  const int64_t groups = (args.pixels() + R - 1) / R, panels = args.panels();
  Block<T> block(args);
  for (; begin < end; ++begin) {
    const int64_t index = begin / args.parts, part = begin % args.parts;
    const int64_t panel = part * panels / args.parts, last = (part + 1) * panels / args.parts;
    block.find(
        index * groups / args.blocks * R,
        std::min((index + 1) * groups / args.blocks * R, args.pixels()));
    for (int64_t chunk = 0; chunk < args.chunks(); chunk += block.chunks) {
      const int64_t chunks = std::min(block.chunks, args.chunks() - chunk);
      block.gather(chunk, chunks);
      for (int64_t p = panel; p < last; ++p) {
        block.add(chunk, chunks, p, block.sums + (p - panel) * P * block.groups * R);
      }
    }
    store(block, panel, last);
  }
}

}  // namespace

void conv3d_direct(const DirectConv3d& args, int64_t begin, int64_t end) {
  args.half ? convolve<bf16>(args, begin, end) : convolve<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
