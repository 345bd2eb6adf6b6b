// causal_conv3d with 3x3x3 taps by Winograd's F(2, 3) along time, rows and columns.
//
// A tile is 2 x 2 x 2 outputs. The 4 x 4 x 4 inputs that it sees are read where they lie (history,
// x, or zeros around them), transformed, multiplied by the transformed weight, one matrix product
// for each of 64 positions, and transformed back: 64 products of channels instead of 216. Along one
// axis, with d the inputs and g the taps:
//
//   v = (d0 - d2, d1 + d2, d2 - d1, d3 - d1)      u = (g0, (g0 + g1 + g2)/2, (g0 - g1 + g2)/2, g2)
//   m = u * v      y = (m0 + m1 + m2, m1 - m2 + m3)
//
// A last odd frame needs only the first three positions along time. The weight is transformed
// panel by panel whenever it is used, which is a few products' worth of work for each of its
// elements: stored that way it would be 64 / 27 as large. Arithmetic is fp32, whatever is stored.
#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
// Tiles of one inner product: 4 * R accumulators beside 2 weights and an input.
constexpr int64_t R = W == 16 ? 7 : W == 8 ? 3 : 2;
constexpr int64_t C = 2 * W;             // outputs of one inner product
constexpr int64_t max_groups = 70 / R;   // groups whose products wait in the cache
constexpr int64_t slab_bytes = 8 << 20;  // of transformed inputs
static_assert(P % C == 0 && L % W == 0 && R <= conv3d_rows);

template <int64_t step>
inline void forward(Vec* d) {
  const Vec d1 = d[step], d2 = d[2 * step];
  d[0] = d[0] - d2;
  d[step] = d1 + d2;
  d[2 * step] = d2 - d1;
  d[3 * step] = d[3 * step] - d1;
}

// The four positions along one axis to two outputs, in place of the first two.
template <int64_t step>
inline void backward(Vec* m) {
  const Vec m1 = m[step], m2 = m[2 * step];
  m[0] = m[0] + m1 + m2;
  m[step] = m1 - m2 + m[3 * step];
}

// Three taps, `step` apart, to four positions `to_step` apart.
template <int64_t step, int64_t to_step>
inline void spread(const Vec* taps, Vec* to) {
  const Vec half = Vec::all(0.5f), outer = taps[0] + taps[2 * step], middle = taps[step];
  to[0] = taps[0];
  to[3 * to_step] = taps[2 * step];
  to[to_step] = half * (outer + middle);
  to[2 * to_step] = half * (outer - middle);
}

struct Tile {
  int64_t batch, frame, row, column;  // its first output

  Tile(const CausalConv3d& args, int64_t index) {
    column = 2 * (index % args.tile_columns());
    index /= args.tile_columns();
    row = 2 * (index % args.tile_rows());
    index /= args.tile_rows();
    frame = 2 * (index % args.pairs());
    batch = index / args.pairs();
  }
  bool is_pair(const CausalConv3d& args) const { return frame + 1 < args.frames; }
};

// Where groups of tiles lie in the transformed inputs: [16 rows and columns][group][4 times][chunk]
// [R][L].
struct Groups {
  int64_t count, size, position_step;

  explicit Groups(const WinogradConv3d& args)
      : count((args.count + R - 1) / R),
        size(4 * args.depth() * R),
        position_step(count * size) {}
};

// Transformed inputs of one tile.
template <class T>
void transform_inputs(
    const CausalConv3d& args, const Tile& tile, const T* zeros, float* v, int64_t position_step) {
  const bool pair = tile.is_pair(args);
  const T* pixels[4][16];
  for (int64_t frame = 0; frame < (pair ? 4 : 3); ++frame) {
    for (int64_t i = 0; i < 16; ++i) {
      pixels[frame][i] = find_pixel<T>(
          args, tile.batch, tile.frame + frame, tile.row + i / 4, tile.column + i % 4, zeros);
    }
  }
  const int64_t chunks = conv3d_chunks(args.inputs), time_step = chunks * R * L;
  const auto transform = [&](int64_t channel, float* to, auto... n) {
    const auto part = [&](int64_t time, auto load) {
      Vec d[16];
      for (int64_t i = 0; i < 16; ++i) d[i] = load(i);
      for (int64_t i = 0; i < 4; ++i) forward<4>(d + i);
      for (int64_t i = 0; i < 4; ++i) forward<1>(d + 4 * i);
      for (int64_t i = 0; i < 16; ++i) d[i].store(to + i * position_step + time * time_step);
    };
    const auto at = [&](int64_t frame, int64_t i) {
      return Vec::load(pixels[frame][i] + channel, n...);
    };
    part(0, [&](int64_t i) { return at(0, i) - at(2, i); });
    part(1, [&](int64_t i) { return at(1, i) + at(2, i); });
    part(2, [&](int64_t i) { return at(2, i) - at(1, i); });
    if (pair) part(3, [&](int64_t i) { return at(3, i) - at(1, i); });
  };
  for (int64_t channel = 0; channel < chunks * L; channel += W) {
    float* to = v + channel / L * R * L + channel % L;
    const int64_t left = args.inputs - channel;
    left >= W ? transform(channel, to) : transform(channel, to, std::max<int64_t>(left, 0));
  }
}

// A panel's taps to its positions: u [16 rows and columns][4 times][depth][P].
template <class T>
void transform_weights(const CausalConv3d& args, int64_t panel, float* u) {
  const int64_t depth = args.depth(), tap_step = depth * P;
  const T* taps = static_cast<const T*>(args.packed) + panel * 27 * tap_step;
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t column = 0; column < P; column += W) {
      Vec spread_times[2][36];  // of inputs k and k + 1: [4 times][9 rows and columns]
      for (int64_t i = 0; i < 9; ++i) {
        Vec even[3], odd[3];
        for (int64_t t = 0; t < 3; ++t) {
          load_rows(taps + (9 * t + i) * tap_step + k * P, column, even[t], odd[t]);
        }
        spread<1, 9>(even, spread_times[0] + i);
        spread<1, 9>(odd, spread_times[1] + i);
      }
      for (int64_t input = 0; input < 2; ++input) {
        for (int64_t time = 0; time < 4; ++time) {
          Vec rows[12], all[16];
          for (int64_t w = 0; w < 3; ++w) {
            spread<3, 3>(spread_times[input] + 9 * time + w, rows + w);
          }
          for (int64_t h = 0; h < 4; ++h) spread<1, 1>(rows + 3 * h, all + 4 * h);
          float* to = u + time * tap_step + (k + input) * P + column;
          for (int64_t i = 0; i < 16; ++i) all[i].store(to + 4 * i * tap_step);
        }
      }
    }
  }
}

// sum += v [R, inputs] times u [inputs, C].
inline void accumulate(Vec (&sum)[R][2], const float* v, const float* u, int64_t chunks) {
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += R * L, u += L * P) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < L; ++k) {
      const Vec first = Vec::load(u + k * P), second = Vec::load(u + k * P + W);
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        const Vec value = Vec::all(v[r * L + k]);
        sum[r][0] = Vec::fma(value, first, sum[r][0]);
        sum[r][1] = Vec::fma(value, second, sum[r][1]);
      }
    }
  }
}

// Products of a group of tiles at one position of rows and columns, summed along time into both
// output frames [R, C].
template <bool pair>
void multiply(const float* v, const float* u, int64_t chunks, float* even, float* odd) {
  const int64_t v_step = chunks * R * L, u_step = chunks * L * P;
  Vec a[R][2], b[R][2];
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) a[r][0] = a[r][1] = b[r][0] = b[r][1] = Vec::zero();
  accumulate(a, v + v_step, u + u_step, chunks);
  accumulate(b, v + 2 * v_step, u + 2 * u_step, chunks);
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < 2; ++i) {
      const Vec both = a[r][i], change = b[r][i];
      a[r][i] = both + change;
      b[r][i] = both - change;
    }
  }
  accumulate(a, v, u, chunks);
  if (pair) accumulate(b, v + 3 * v_step, u + 3 * u_step, chunks);
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < 2; ++i) {
      a[r][i].store(even + r * C + i * W);
      if (pair) b[r][i].store(odd + r * C + i * W);
    }
  }
}

// 16 positions of rows and columns, C outputs each, of one output frame of a tile to its pixels.
template <class T>
void transform_outputs(
    const CausalConv3d& args, const Tile& tile, int64_t frame, int64_t first, const float* m,
    int64_t position_step) {
  const int64_t rows = std::min<int64_t>(2, args.rows - tile.row);
  const int64_t columns = std::min<int64_t>(2, args.columns - tile.column);
  const int64_t image = tile.batch * args.frames + tile.frame + frame;
  T* out = static_cast<T*>(args.out) +
           ((image * args.rows + tile.row) * args.columns + tile.column) * args.outputs;
  const auto transform = [&](int64_t channel, auto... n) {
    Vec y[16];
    for (int64_t i = 0; i < 16; ++i) y[i] = Vec::load(m + i * position_step + channel - first);
    for (int64_t i = 0; i < 4; ++i) backward<4>(y + i);
    for (int64_t i = 0; i < 2; ++i) backward<1>(y + 4 * i);
    const Vec bias = args.bias ? Vec::load(args.bias + channel, n...) : Vec::zero();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        (y[4 * i + j] + bias).store(out + (i * args.columns + j) * args.outputs + channel, n...);
      }
    }
  };
  for (int64_t channel = first; channel < std::min(first + C, args.outputs); channel += W) {
    const int64_t left = args.outputs - channel;
    left >= W ? transform(channel) : transform(channel, left);
  }
}

// What a thread multiplies in.
struct Workspace {
  explicit Workspace(const CausalConv3d& args)
      : weights(64 * args.depth() * P), products(32 * max_groups * R * C) {}

  Aligned<float> weights;   // of transform_weights
  Aligned<float> products;  // [16 rows and columns][2 frames][group][R][C]
};

// Groups [begin, end) of tiles by one panel, whose weights are transformed.
template <class T>
void multiply_groups(
    const WinogradConv3d& args, int64_t panel, int64_t begin, int64_t end, Workspace& work) {
  const Groups all(args);
  const int64_t chunks = conv3d_chunks(args.inputs);
  for (; begin < end; begin += max_groups) {
    const int64_t groups = std::min(max_groups, end - begin), frame_step = groups * R * C;
    bool pair[max_groups] = {};  // some may have a single frame, and leave the second one unused
    for (int64_t n = 0; n < groups * R; ++n) {
      const int64_t index = args.first + std::min(begin * R + n, args.count - 1);
      pair[n / R] |= Tile(args, index).is_pair(args);
    }
    for (int64_t column = 0; column < P; column += C) {
      if (panel * P + column >= args.outputs) break;
      for (int64_t position = 0; position < 16; ++position) {
        const float* u = work.weights + position * 4 * chunks * L * P + column;
        float *even = work.products + 2 * position * frame_step, *odd = even + frame_step;
        for (int64_t n = 0; n < groups; ++n) {
          const float* inputs = args.v + position * all.position_step + (begin + n) * all.size;
          const auto product = pair[n] ? multiply<true> : multiply<false>;
          product(inputs, u, chunks, even + n * R * C, odd + n * R * C);
        }
      }
      const int64_t count = std::min(groups * R, args.count - begin * R);
      for (int64_t n = 0; n < count; ++n) {
        const Tile tile(args, args.first + begin * R + n);
        const float* m = work.products + n * C;
        const int64_t first = panel * P + column;
        transform_outputs<T>(args, tile, 0, first, m, 2 * frame_step);
        if (tile.is_pair(args)) {
          transform_outputs<T>(args, tile, 1, first, m + frame_step, 2 * frame_step);
        }
      }
    }
  }
}

template <class T>
void inputs(const WinogradConv3d& args, int64_t begin, int64_t end) {
  const Groups groups(args);
  Aligned<T> zeros(args.depth());
  std::fill_n(static_cast<T*>(zeros), args.depth(), T{});
  // A last group that is not full repeats its last tile.
  const int64_t all = end == args.count ? groups.count * R : end;
  for (int64_t n = begin; n < all; ++n) {
    const Tile tile(args, args.first + std::min(n, args.count - 1));
    float* v = args.v + n / R * groups.size + n % R * L;
    transform_inputs<T>(args, tile, zeros, v, groups.position_step);
  }
}

template <class T>
void units(const WinogradConv3d& args, int64_t begin, int64_t end) {
  Workspace work(args);
  const int64_t groups = Groups(args).count;
  int64_t ready = -1;  // panel whose weights are transformed
  for (; begin < end; ++begin) {
    const int64_t panel = begin / args.parts, part = begin % args.parts;
    if (panel != ready) transform_weights<T>(args, panel, work.weights);
    ready = panel;
    multiply_groups<T>(
        args, panel, part * groups / args.parts, (part + 1) * groups / args.parts, work);
  }
}

template <class T>
void tiles(WinogradConv3d args, int64_t begin, int64_t end) {
  const int64_t tile_bytes = args.transformed(1) / (1 + conv3d_rows) * 4;
  const int64_t most = std::max<int64_t>(slab_bytes / tile_bytes, 2 * R) / R * R;
  const int64_t slabs = (end - begin + most - 1) / most;
  Aligned<float> v(args.transformed(std::min(most, end - begin)));
  args.v = v;
  args.parts = 1;
  for (int64_t slab = 0; slab < slabs; ++slab) {
    const int64_t groups = (end - begin + R - 1) / R;
    args.first = begin + slab * groups / slabs * R;
    args.count = std::min(end, begin + (slab + 1) * groups / slabs * R) - args.first;
    inputs<T>(args, 0, args.count);
    units<T>(args, 0, args.panels());
  }
}

}  // namespace

void conv3d_winograd(const WinogradConv3d& args, int64_t begin, int64_t end) {
  args.half ? tiles<bf16>(args, begin, end) : tiles<float>(args, begin, end);
}

void conv3d_winograd_inputs(const WinogradConv3d& args, int64_t begin, int64_t end) {
  args.half ? inputs<bf16>(args, begin, end) : inputs<float>(args, begin, end);
}

void conv3d_winograd_units(const WinogradConv3d& args, int64_t begin, int64_t end) {
  args.half ? units<bf16>(args, begin, end) : units<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
