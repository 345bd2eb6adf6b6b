// causal_conv3d with any taps and strides, as a matrix product of gathered pixels and the weight.
//
// What a block of output pixels sees is gathered once, in groups of R pixels that are together in
// memory, as much as the second-level cache holds; then every panel of outputs is multiplied by all
// groups. Sums stay in registers, unless a pixel sees so many inputs that they are gathered in
// several passes: then sums wait in memory in between. bf16 is multiplied in pairs where the
// processor does that, and widened elsewhere. Taps that meet the zero frames only are left out.
#include <type_traits>

#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
constexpr int64_t max_depth = 1728;  // inputs times taps of a pass, about
constexpr int64_t ahead_taps = 4;    // how early weights are fetched
constexpr int64_t ahead_groups = 2;  // how early pixels are

constexpr int64_t short_depth = 432;  // inputs times taps that are summed one by one, about
// Pixels and outputs of one inner product: 2 * R sums, in addition to 2 weights and an input.
constexpr int64_t R = W == 16 ? 14 : W == 8 ? 6 : 4, C = 2 * W;
constexpr int64_t max_groups = 224 / R;  // of pixels in a block
static_assert(P % C == 0 && L % W == 0);

// As what T is multiplied.
template <class T>
using Word = packed_t<T>;
template <class T>
constexpr bool widens = !std::is_same_v<T, Word<T>>;
// What a block gathers in a pass at most: twice as much if a pass begins with widening its weights.
template <class T>
constexpr int64_t block_bytes = (widens<T> ? 768 : 384) << 10;

// Some taps of a chunk's weights, [L, C] each, `step` apart.
template <class Word>
struct Weights {
  const Word* first;
  int64_t step;
};

// An output pixel: its column, and the first input that it sees, counted with all borders and zero
// frames.
struct Place {
  int64_t index, batch, frame, row, column;

  Place(const CausalConv3d& args, int64_t pixel) {
    index = pixel % args.columns;
    column = index * args.stride[2];
    pixel /= args.columns;
    row = pixel % args.rows * args.stride[1];
    pixel /= args.rows;
    frame = pixel % args.frames * args.stride[0];
    batch = pixel / args.frames;
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

// Some taps of some chunks, whose pixels v are `v_step` apart: v [R, L] and `weights(chunk)`
// multiplied at each tap of each chunk, added to `sum` [R, C] and `bias` [C], each null for none,
// give `to`, with rows `to_step` apart. Products are summed before `sum` is added, so that long
// sums are made of short ones. Weights of large layers come from the third-level cache, so they
// are asked for early.
template <class T, class Places, class To>
__attribute__((noinline)) void multiply(
    const Word<T>* v, int64_t v_step, const Places& weights, int64_t chunks, int64_t taps,
    const float* sum, const float* bias, To* to, int64_t to_step) {
  constexpr int64_t G = Packed<T>::group;
  Vec sums[R][2];
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0] = sums[r][1] = Vec::zero();
  }
  Weights<Word<T>> own = weights(0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += v_step) {
    const Weights<Word<T>> next = weights(chunk + 1);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Word<T>*left = v + tap * R * L, *right = own.first + tap * own.step;
      const int64_t beyond = tap + ahead_taps - taps;
      const Word<T>* later = beyond < 0 ? right + ahead_taps * own.step
                                        : next.first + beyond * next.step;
#pragma GCC unroll 2
      for (int64_t k = 0; k < L; k += G) {
        const float* row = reinterpret_cast<const float*>(right + k * P);
        for (int64_t line = 0; line < C; line += 16) {
          __builtin_prefetch(reinterpret_cast<const float*>(later + k * P) + line);
        }
        const Vec first = Vec::load(row), second = Vec::load(row + W);
#pragma GCC unroll 16
        for (int64_t r = 0; r < R; ++r) {
          const Vec value = Packed<T>::repeat(left + r * L + k);
          sums[r][0] = Packed<T>::multiply(value, first, sums[r][0]);
          sums[r][1] = Packed<T>::multiply(value, second, sums[r][1]);
        }
      }
    }
    own = next;
  }
  const Vec first = bias ? Vec::load(bias) : Vec::zero();
  const Vec second = bias ? Vec::load(bias + W) : Vec::zero();
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    if (sum) {
      sums[r][0] = sums[r][0] + Vec::load(sum + r * C);
      sums[r][1] = sums[r][1] + Vec::load(sum + r * C + W);
    }
    (sums[r][0] + first).store(to + r * to_step);
    (sums[r][1] + second).store(to + r * to_step + W);
  }
}

// Some taps of a chunk's weights in fp32, [taps, L, P].
inline void widen_taps(Weights<bf16> packed, int64_t taps, float* to) {
  for (int64_t tap = 0; tap < taps; ++tap, to += L * P) {
    const bf16* own = packed.first + tap * packed.step;
    for (int64_t k = 0; k < L; k += 2) {
      const bf16* later = own + ahead_taps * packed.step + k * P;
      __builtin_prefetch(later);
      __builtin_prefetch(later + P);
      for (int64_t column = 0; column < P; column += W) {
        Vec even, odd;
        load_rows(own + k * P, column, even, odd);
        even.store(to + k * P + column);
        odd.store(to + (k + 1) * P + column);
      }
    }
  }
}

// A thread's work, a block of pixels at a time.
//
// Attributes: taps, of the weight; active, those that meet a frame which is not zero, somewhere in
// the output; chunks, of a pass; short_chunks, of a short sum; most, groups of a block at most;
// count and groups of the block's pixels; first_tap, the first one that a pixel of the block
// needs; skipped, taps from there on that a group does not need; pixels [tap from first_tap
// on][group][R], what the block sees; gathered [group][chunk][tap from first_tap on][R][L];
// widened [chunk][tap from first_tap on][L][P], a panel's weights, if it widens; sums [P / C x
// panel][group][R][C]; tile [R][C], a group's sums meanwhile.
template <class T>
struct Block {
  const DirectConv3d& args;
  int64_t image, taps, active, chunks, short_chunks, most;
  int64_t first, count, groups, first_tap, block_taps;
  int64_t skipped[max_groups];
  Aligned<const T*> pixels;
  Aligned<Word<T>> gathered, widened;
  Aligned<float> sums, tile;
  Aligned<T> zeros;

  explicit Block(const DirectConv3d& args)
      : args(args),
        image(args.taps[1] * args.taps[2]),
        taps(args.all_taps()),
        active(taps - zero_taps((args.frames - 1) * args.stride[0])),
        chunks(chunks_of_pass(args.chunks(), active)),
        short_chunks(std::max<int64_t>(1, short_depth / L / active)),
        most(most_groups(chunks * active * L)),
        pixels(active * most * R),
        gathered(most * R * chunks * active * L),
        widened(widens<T> ? chunks * active * L * P : 0),
        sums(chunks < args.chunks() ? most * R * args.panels() * P : 1),
        tile(R * C),
        zeros(args.chunks() * L) {
    std::fill_n(static_cast<T*>(zeros), args.chunks() * L, T{});
  }

  static int64_t chunks_of_pass(int64_t chunks, int64_t taps) {
    const int64_t passes = std::min(chunks, (chunks * taps * L + max_depth - 1) / max_depth);
    return (chunks + passes - 1) / passes;
  }
  static int64_t most_groups(int64_t depth) {
    const int64_t bytes = R * depth * static_cast<int64_t>(sizeof(Word<T>));
    return std::clamp<int64_t>(block_bytes<T> / bytes, 1, max_groups);
  }

  // Taps of a pixel that meet zero frames only.
  int64_t zero_taps(int64_t frame) const {
    return std::max<int64_t>(0, args.zero_frames - frame) * image;
  }

  // Calls f(place, n, run) for each run of the block's pixels that are in one row of the output.
  template <class F>
  void for_runs(const F& f) {
    for (int64_t n = 0, run; n < count; n += run) {
      const Place place(args, first + n);
      run = std::min(args.columns - place.index, count - n);
      f(place, n, run);
    }
  }

  // Finds what the pixels [begin, end) of the output see; a last group repeats its last pixel.
  void find(int64_t begin, int64_t end) {
    first = begin;
    count = end - begin;
    groups = (count + R - 1) / R;
    std::fill_n(skipped, groups, taps);
    for_runs([&](const Place& place, int64_t n, int64_t run) {
      for (int64_t g = n / R; g <= (n + run - 1) / R; ++g) {
        skipped[g] = std::min(skipped[g], zero_taps(place.frame));
      }
    });
    first_tap = *std::min_element(skipped, skipped + groups);
    block_taps = taps - first_tap;
    for (int64_t g = 0; g < groups; ++g) skipped[g] -= first_tap;
    for_runs([&](const Place& place, int64_t n, int64_t run) {
      const T** seen = pixels + n;
      for (int64_t t = first_tap / image; t < args.taps[0]; ++t) {
        const Frame<T> frame(args, place.batch, place.frame + t);
        for (int64_t h = 0; h < args.taps[1]; ++h) {
          const T* row = frame.row(args, place.row + h);
          for (int64_t w = 0; w < args.taps[2]; ++w, seen += groups * R) {
            for (int64_t i = 0; i < run; ++i) {
              const int64_t column = place.column + i * args.stride[2] + w - args.left;
              const bool inside = row && column >= 0 && column < args.width;
              seen[i] = inside ? row + column * frame.video->column : zeros;
            }
          }
        }
      }
    });
    for (int64_t tap = 0; tap < block_taps; ++tap) {
      const T** seen = pixels + tap * groups * R;
      std::fill(seen + count, seen + groups * R, seen[count - 1]);
    }
  }

  // Memory is written in order, and what is not read in order is asked for early.
  void gather(int64_t first_chunk, int64_t own_chunks) {
    Word<T>* to = gathered;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t later = std::min(ahead_groups, groups - 1 - group) * R;
      for (int64_t chunk = first_chunk; chunk < first_chunk + own_chunks; ++chunk) {
        for (int64_t tap = 0; tap < block_taps; ++tap) {
          const T** seen = pixels + (tap * groups + group) * R;
          for (int64_t r = 0; r < R; ++r, to += L) {
            __builtin_prefetch(seen[later + r] + chunk * L);
            copy<T>(seen[r] + chunk * L, args.inputs - chunk * L, to);
          }
        }
      }
    }
  }

  // Adds the products of gathered chunks and a panel's weights for them to the panel's sums; the
  // last chunks make these the results.
  void multiply_panel(int64_t first_chunk, int64_t own_chunks, int64_t panel, float* panel_sums) {
    const int64_t v_step = block_taps * R * L;
    const T* packed = static_cast<const T*>(args.packed) + panel * args.chunks() * taps * L * P;
    const auto place = [&](int64_t chunk) {
      const ChunkPlace<T> place(args.chunks(), taps, first_chunk + chunk);
      return Weights<T>{packed + place.first + first_tap * place.step, place.step};
    };
    const auto weights = [&](int64_t chunk) {
      if constexpr (widens<T>) {
        return Weights<float>{widened + chunk * block_taps * L * P, L * P};
      } else {
        return place(chunk);
      }
    };
    if constexpr (widens<T>) {
      for (int64_t chunk = 0; chunk < own_chunks; ++chunk) {
        widen_taps(place(chunk), block_taps, widened + chunk * block_taps * L * P);
      }
    }
    const bool last = first_chunk + own_chunks == args.chunks();
    for (int64_t column = 0; column < P; column += C) {
      const int64_t channel = panel * P + column, channels = args.outputs - channel;
      if (channels <= 0) break;
      const float* bias = args.bias ? args.bias + channel : nullptr;
      for (int64_t n = 0; n < groups; ++n) {
        const int64_t rows = count - n * R;
        float* sum = panel_sums + (column * groups + n * C) * R;
        T* result = static_cast<T*>(args.out) + (first + n * R) * args.outputs + channel;
        const bool whole = rows >= R && channels >= C;
        for (int64_t chunk = 0; chunk < own_chunks; chunk += short_chunks) {
          const bool begins = first_chunk + chunk == 0, ends = chunk + short_chunks >= own_chunks;
          const float* before = begins ? nullptr : chunk ? static_cast<float*>(tile) : sum;
          const auto product = [&](const float* offset, auto* to, int64_t to_step) {
            const Word<T>* left = gathered + (n * own_chunks + chunk) * v_step + skipped[n] * R * L;
            const auto right = [&](int64_t later) {
              Weights<Word<T>> own = weights(chunk + later);
              own.first += skipped[n] * own.step + column * Packed<T>::group;
              return own;
            };
            multiply<T>(
                left, v_step, right, std::min(short_chunks, own_chunks - chunk),
                block_taps - skipped[n], before, offset, to, to_step);
          };
          if (ends && last && whole) {
            product(bias, result, args.outputs);
          } else {
            product(nullptr, ends && !last ? sum : static_cast<float*>(tile), C);
          }
        }
        if (last && !whole) store_tile(bias, result, std::min(rows, R), std::min(channels, C));
      }
    }
  }

  void store_tile(const float* bias, T* to, int64_t rows, int64_t channels) const {
    const auto store_vector = [&](int64_t row, int64_t k, auto... left) {
      const Vec offset = bias ? Vec::load(bias + k, left...) : Vec::zero();
      (Vec::load(tile + row * C + k) + offset).store(to + row * args.outputs + k, left...);
    };
    for (int64_t row = 0; row < rows; ++row) {
      int64_t k = 0;
      for (; k + W <= channels; k += W) store_vector(row, k);
      if (k < channels) store_vector(row, k, channels - k);
    }
  }
};

template <class T>
void convolve(const DirectConv3d& args, int64_t begin, int64_t end) {
  const int64_t pixels = args.pixels(), panels = args.panels();
  Block<T> block(args);
  while (begin < end) {
    const int64_t part = begin / pixels, first = begin % pixels;
    const int64_t panel = part * panels / args.parts, last = (part + 1) * panels / args.parts;
    const int64_t own = std::min(end - begin, pixels - first);
    const int64_t groups = (own + R - 1) / R, blocks = (groups + block.most - 1) / block.most;
    for (int64_t index = 0; index < blocks; ++index) {
      block.find(
          first + index * groups / blocks * R,
          first + std::min((index + 1) * groups / blocks * R, own));
      for (int64_t chunk = 0; chunk < args.chunks(); chunk += block.chunks) {
        const int64_t chunks = std::min(block.chunks, args.chunks() - chunk);
        block.gather(chunk, chunks);
        for (int64_t p = panel; p < last; ++p) {
          block.multiply_panel(
              chunk, chunks, p, block.sums + (p - panel) * P * block.groups * R);
        }
      }
    }
    begin += own;
  }
}

}  // namespace

void conv3d_direct(const DirectConv3d& args, int64_t begin, int64_t end) {
  args.half ? convolve<bf16>(args, begin, end) : convolve<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
