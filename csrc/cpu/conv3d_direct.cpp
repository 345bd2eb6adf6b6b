// causal_conv3d with any taps and strides, as a matrix product of gathered pixels and the weight.
//
// What a block of output pixels sees is gathered once, in groups of R pixels that are together in
// memory, as much as the second-level cache holds; then every panel of outputs is multiplied by all
// groups. Sums stay in registers, unless a pixel sees so many inputs that they are gathered in
// several passes: then sums wait in memory in between. bf16 is multiplied in tiles or in pairs
// where the processor does that, and widened elsewhere. Taps that meet the zero frames only are
// left out.
#include <type_traits>

#include "livetalk/conv3d.h"
#include "livetalk/tiles.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
constexpr int64_t max_depth = 1728;  // inputs times taps of a pass, about
constexpr int64_t ahead_taps = 4;    // how early weights are fetched
constexpr int64_t ahead_groups = 2;  // how early pixels are

// How T is multiplied. R pixels and C outputs of one inner product: 2 * R sums beside 2 weights and
// an input, or a tile's sums; `Word`, as what; `taps` that lie together, row by row; `max_groups`
// of pixels in a block, which gathers `block_bytes` in a pass at most, twice as many if a pass
// begins with widening its weights, and half of what every processor with tiles has as its second
// cache; `short_depth`, inputs times taps that are summed one by one, about: in tiles, all of a
// pass, since what is lost is far below bf16's own rounding.
template <class T>
struct Shape {
  static constexpr bool tiled = Tiles<T>::here;
  using Word = std::conditional_t<tiled, T, packed_t<T>>;
  static constexpr bool widens = !std::is_same_v<T, Word>;
  static constexpr int64_t R = tiled ? tile_side : W == 16 ? 14 : W == 8 ? 6 : 4;
  static constexpr int64_t C = tiled ? tile_side : 2 * W;
  static constexpr int64_t taps = tiled ? tile_side / L : 1;
  static constexpr int64_t max_groups = 224 / R;
  static constexpr int64_t block_bytes = (tiled ? 1024 : widens ? 768 : 384) << 10;
  static constexpr int64_t short_depth = tiled ? max_depth : 432;
  static_assert(P % C == 0 && L % W == 0 && tile_side % L == 0);

  // Where a pixel's inputs at a tap lie, of those of R pixels at all taps.
  static constexpr int64_t place(int64_t tap, int64_t r) {
    return ((tap / taps * R + r) * taps + tap % taps) * L;
  }
};

template <class T>
using Word = typename Shape<T>::Word;

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

// Some taps of some chunks, which are `v_step` and `u_step` apart: v [R, L] u [L, C] of each tap of
// each chunk, added to `sum` [R, C] and `bias` [C], each null for none, give `to`, with rows `to_step`
// apart. Products are summed before `sum` is added, so that long sums are made of short ones. Weights of large layers come from the third-level cache, so they are asked for early; those
// behind the last are the next panel's.
template <class T, class To>
__attribute__((noinline)) void multiply(
    const Word<T>* v, int64_t v_step, const Word<T>* u, int64_t u_step, int64_t chunks,
    int64_t taps, const float* sum, const float* bias, To* to, int64_t to_step) {
  constexpr int64_t G = Packed<T>::group, R = Shape<T>::R, C = Shape<T>::C;
  Vec sums[R][2];
#pragma GCC unroll 16
  for (int64_t r = 0; r < R; ++r) {
    sums[r][0] = sums[r][1] = Vec::zero();
  }
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += v_step, u += u_step) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const Word<T>*left = v + tap * R * L, *right = u + tap * L * P;
      const Word<T>* later = right + ahead_taps * L * P;
      if (tap + ahead_taps >= taps) later += u_step - taps * L * P;
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

// The same in tiles of two taps each; `odd` [taps, L, C] of each chunk is a last odd tap's weights,
// and zeros.
template <class T, class To>
__attribute__((noinline)) void multiply(
    Tiles<T>& tiles, const T* v, int64_t v_step, const T* u, int64_t u_step, const T* odd,
    int64_t chunks, int64_t taps, const float* sum, const float* bias, To* to, int64_t to_step) {
  constexpr int64_t pair = Shape<T>::taps, R = Shape<T>::R, C = Shape<T>::C;
  static_assert(C == P && pair == 2);
  tiles.clear();
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += v_step, u += u_step, odd += pair * L * P) {
    for (int64_t tap = 0; tap < taps; tap += pair) {
      tiles.multiply(v + tap * R * L, tap + 1 < taps ? u + tap * L * P : odd, 2 * P);
    }
  }
  alignas(64) float sums[R * C];
  tiles.store(sums);
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; c += W) {
      Vec value = Vec::load(sums + r * C + c);
      if (sum) value = value + Vec::load(sum + r * C + c);
      if (bias) value = value + Vec::load(bias + c);
      value.store(to + r * to_step + c);
    }
  }
}

// Rows [0, depth) of a packed weight in fp32.
inline void widen_rows(const bf16* packed, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; k += 2) {
    const bf16* later = packed + (k + ahead_taps * L) * P;
    __builtin_prefetch(later);
    __builtin_prefetch(later + P);
    for (int64_t column = 0; column < P; column += W) {
      Vec even, odd;
      load_rows(packed + k * P, column, even, odd);
      even.store(to + k * P + column);
      odd.store(to + (k + 1) * P + column);
    }
  }
}

// A thread's work, a block of pixels at a time.
//
// Attributes: taps, of the weight; active, those that meet a frame which is not zero, somewhere in
// the output; chunks, of a pass; short_chunks, of a short sum; most, groups of a block at most; count and groups of the block's
// pixels; first_tap, the first one that a pixel of the block needs; skipped, taps from there on that
// a group does not need; pixels [tap from first_tap on][group][R], what the block sees; gathered
// [group][chunk][tap from first_tap on][R][L], see Shape::place; weights, a panel of some chunks,
// widened, or its last odd taps; sums [P / C x panel][group][R][C]; tile [R][C], a group's sums
// meanwhile.
template <class T>
struct Block {
  static constexpr bool widens = Shape<T>::widens, tiled = Shape<T>::tiled;
  static constexpr int64_t R = Shape<T>::R, C = Shape<T>::C, max_groups = Shape<T>::max_groups;
  static constexpr int64_t odd_step = tiled ? Shape<T>::taps * L * P : 0;

  const DirectConv3d& args;
  int64_t image, taps, active, chunks, short_chunks, most;
  int64_t first, count, groups, first_tap, block_taps;
  int64_t skipped[max_groups];
  Aligned<const T*> pixels;
  Aligned<Word<T>> gathered, weights;
  Aligned<float> sums, tile;
  Aligned<T> zeros;
  Tiles<T> tiles;

  explicit Block(const DirectConv3d& args)
      : args(args),
        image(args.taps[1] * args.taps[2]),
        taps(args.all_taps()),
        active(taps - zero_taps((args.frames - 1) * args.stride[0])),
        chunks(chunks_of_pass(args.chunks(), active)),
        short_chunks(std::max<int64_t>(1, Shape<T>::short_depth / L / active)),
        most(most_groups(chunks * whole(active) * L)),
        pixels(active * most * R),
        gathered(most * R * chunks * whole(active) * L),
        weights(chunks * (widens ? active * L * P : odd_step)),
        sums(chunks < args.chunks() ? most * R * args.panels() * P : 1),
        tile(R * C),
        zeros(args.chunks() * L) {
    std::fill_n(static_cast<T*>(zeros), args.chunks() * L, T{});
    if constexpr (tiled) std::fill_n(static_cast<T*>(weights), chunks * odd_step, T{});
  }

  // Taps that are gathered: some are zeros where taps lie together.
  static int64_t whole(int64_t taps) { return round_up(taps, Shape<T>::taps); }
  static int64_t chunks_of_pass(int64_t chunks, int64_t taps) {
    const int64_t passes = std::min(chunks, (chunks * taps * L + max_depth - 1) / max_depth);
    return (chunks + passes - 1) / passes;
  }
  static int64_t most_groups(int64_t depth) {
    const int64_t bytes = R * depth * static_cast<int64_t>(sizeof(Word<T>));
    return std::clamp<int64_t>(Shape<T>::block_bytes / bytes, 1, max_groups);
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
    for (int64_t g = 0; g < groups; ++g) {
      skipped[g] = (skipped[g] - first_tap) / Shape<T>::taps * Shape<T>::taps;
    }
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
          for (int64_t r = 0; r < R; ++r) {
            __builtin_prefetch(seen[later + r] + chunk * L);
            copy<T>(seen[r] + chunk * L, args.inputs - chunk * L, to + Shape<T>::place(tap, r));
          }
        }
        for (int64_t tap = block_taps; tap < whole(block_taps); ++tap) {
          for (int64_t r = 0; r < R; ++r) std::fill_n(to + Shape<T>::place(tap, r), L, Word<T>{});
        }
        to += whole(block_taps) * R * L;
      }
    }
  }

  // Adds the products of gathered chunks and a panel's weights for them to the panel's sums; the
  // last chunks make these the results.
  void multiply_panel(int64_t first_chunk, int64_t own_chunks, int64_t panel, float* panel_sums) {
    const int64_t chunk_step = taps * L * P, v_step = whole(block_taps) * R * L;
    const T* packed = static_cast<const T*>(args.packed) +
                      (panel * args.chunks() + first_chunk) * chunk_step + first_tap * L * P;
    const Word<T>* u;
    int64_t u_step;
    if constexpr (widens) {
      u = weights;
      u_step = block_taps * L * P;
      for (int64_t chunk = 0; chunk < own_chunks; ++chunk) {
        widen_rows(packed + chunk * chunk_step, block_taps * L, weights + chunk * u_step);
      }
    } else {
      u = packed;
      u_step = chunk_step;
    }
    if constexpr (tiled) {
      for (int64_t chunk = 0; block_taps % 2 && chunk < own_chunks; ++chunk) {
        const T* odd = packed + chunk * chunk_step + (block_taps - 1) * L * P;
        std::memcpy(weights + chunk * odd_step, odd, L * P * sizeof(T));
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
            const Word<T>* right = u + chunk * u_step + skipped[n] * L * P;
            const int64_t some = std::min(short_chunks, own_chunks - chunk);
            if constexpr (tiled) {
              multiply(
                  tiles, left, v_step, right, u_step, weights + chunk * odd_step, some,
                  block_taps - skipped[n], before, offset, to, to_step);
            } else {
              multiply<T>(
                  left, v_step, right + column * Packed<T>::group, u_step, some,
                  block_taps - skipped[n], before, offset, to, to_step);
            }
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
  constexpr int64_t R = Shape<T>::R;
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
