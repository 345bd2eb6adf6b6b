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
// A last odd frame needs only the first three positions along time. The weight is transformed where
// it is used, a panel of some chunks at a time, which then stay in the cache for all tiles of a
// slab: stored that way it would be 64 / 27 as large. Arithmetic is fp32, whatever is stored.
#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
// Tiles of one inner product: 4 * R accumulators beside 2 weights and an input.
constexpr int64_t R = W == 16 ? 7 : W == 8 ? 3 : 2;
constexpr int64_t C = 2 * W;             // outputs of one inner product
constexpr int64_t max_groups = 140 / R;  // tiles that a weight is transformed once for, at most
constexpr int64_t slab_bytes = 8 << 20;  // of their transformed inputs, at most
constexpr int64_t max_chunks = 4;        // whose weights stay in the cache
static_assert(P % C == 0 && L % W == 0);

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

// A thread's work on some tiles: they are multiplied a few chunks of inputs at a time.
//
// Attributes: v [chunk block][16 rows and columns][group][4 times][chunk][R][L], the transformed
// inputs; u [16 rows and columns][4 times][chunk][L][P], a panel of one chunk block's transformed
// weights, apart by a cache line more so that they do not contend for the same places in the cache;
// m [P / C][16 rows and columns][2 frames][group][R][C], products.
struct Slab {
  const CausalConv3d& args;
  int64_t first, count, groups;  // of tiles
  bool pair[max_groups];         // groups with two output frames
  bool any_pair;
  Aligned<float> v, u, m;

  static int64_t blocks(const CausalConv3d& args) {
    return (args.chunks() + max_chunks - 1) / max_chunks;
  }
  static int64_t block_chunks(const CausalConv3d& args) {
    return (args.chunks() + blocks(args) - 1) / blocks(args);
  }
  static int64_t most_groups(const CausalConv3d& args, int64_t tiles) {
    const int64_t group_bytes = 64 * args.chunks() * L * R * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::clamp<int64_t>(slab_bytes / group_bytes, 4, max_groups);
    return std::min(most, (tiles + R - 1) / R);
  }

  Slab(const CausalConv3d& args, int64_t most)
      : args(args),
        v(64 * blocks(args) * block_chunks(args) * most * R * L),
        u(64 * u_step()),
        m(32 * most * R * P) {}

  int64_t chunks_of(int64_t block) const {
    return std::min(block_chunks(args), args.chunks() - block * block_chunks(args));
  }
  int64_t group_step() const { return 4 * block_chunks(args) * R * L; }
  int64_t position_step() const { return groups * group_step(); }
  int64_t u_step() const { return block_chunks(args) * L * P + L; }
  int64_t frame_step() const { return groups * R * C; }

  Tile tile(int64_t n) const { return Tile(args, first + std::min(n, count - 1)); }
};

// The inputs of a tile, the n-th one.
template <class T>
void transform_inputs(const Slab& slab, const Tile& tile, int64_t n, const T* zeros) {
  const CausalConv3d& args = slab.args;
  const bool pair = tile.is_pair(args);
  const T* pixels[4][16];
  for (int64_t frame = 0; frame < (pair ? 4 : 3); ++frame) {
    for (int64_t i = 0; i < 16; ++i) {
      pixels[frame][i] = find_pixel<T>(
          args, tile.batch, tile.frame + frame, tile.row + i / 4, tile.column + i % 4, zeros);
    }
  }
  const int64_t position_step = slab.position_step(), block_chunks = Slab::block_chunks(args);
  const int64_t time_step = block_chunks * R * L;
  const auto transform = [&](int64_t channel, float* to, auto... left) {
    const auto part = [&](int64_t time, auto load) {
      Vec d[16];
      for (int64_t i = 0; i < 16; ++i) d[i] = load(i);
      for (int64_t i = 0; i < 4; ++i) forward<4>(d + i);
      for (int64_t i = 0; i < 4; ++i) forward<1>(d + 4 * i);
      for (int64_t i = 0; i < 16; ++i) d[i].store(to + i * position_step + time * time_step);
    };
    const auto at = [&](int64_t frame, int64_t i) {
      return Vec::load(pixels[frame][i] + channel, left...);
    };
    part(0, [&](int64_t i) { return at(0, i) - at(2, i); });
    part(1, [&](int64_t i) { return at(1, i) + at(2, i); });
    part(2, [&](int64_t i) { return at(2, i) - at(1, i); });
    if (pair) part(3, [&](int64_t i) { return at(3, i) - at(1, i); });
  };
  float* own = slab.v + n / R * slab.group_step() + n % R * L;
  for (int64_t channel = 0; channel < args.chunks() * L; channel += W) {
    const int64_t chunk = channel / L, block = chunk / block_chunks;
    float* to = own + block * 16 * position_step + chunk % block_chunks * R * L + channel % L;
    const int64_t left = args.inputs - channel;
    left >= W ? transform(channel, to) : transform(channel, to, std::max<int64_t>(left, 0));
  }
}

// A panel's taps of one chunk block to their positions. A few inputs go through each step together:
// then few pages are written at a time.
template <class T>
void transform_weights(const Slab& slab, int64_t panel, int64_t block) {
  constexpr int64_t K = 8;
  const int64_t chunk_step = 27 * L * P, chunks = slab.chunks_of(block), u_step = slab.u_step();
  const int64_t first = panel * slab.args.chunks() + block * Slab::block_chunks(slab.args);
  const T* taps = static_cast<const T*>(slab.args.packed) + first * chunk_step;
  for (int64_t k = 0; k < chunks * L; k += K) {
    const T* rows = taps + k / L * chunk_step + k % L * P;
    const T* next = taps + (k + K) / L * chunk_step + (k + K) % L * P;
    for (int64_t column = 0; column < P; column += W) {
      Vec times[K][36];  // [input][4 times][9 rows and columns]
      for (int64_t i = 0; i < 9; ++i) {
        for (int64_t input = 0; input < K; input += 2) {
          Vec even[3], odd[3];
          for (int64_t t = 0; t < 3; ++t) {
            load_rows(rows + ((9 * t + i) * L + input) * P, column, even[t], odd[t]);
          }
          spread<1, 9>(even, times[input] + i);
          spread<1, 9>(odd, times[input + 1] + i);
        }
      }
      for (int64_t time = 0; time < (slab.any_pair ? 4 : 3); ++time) {
        for (int64_t input = 0; input < K; ++input) {
          for (int64_t tap = 9 * time; tap < std::min<int64_t>(9 * time + 9, 27); ++tap) {
            __builtin_prefetch(next + (tap * L + input) * P + column);
          }
          Vec part[12], all[16];
          for (int64_t w = 0; w < 3; ++w) spread<3, 3>(times[input] + 9 * time + w, part + w);
          for (int64_t h = 0; h < 4; ++h) spread<1, 1>(part + 3 * h, all + 4 * h);
          float* to = slab.u + time * u_step + (k + input) * P + column;
          for (int64_t i = 0; i < 16; ++i) all[i].store(to + 4 * i * u_step);
        }
      }
    }
  }
}

// sum += v [R, inputs] times u [inputs, C]. What comes `ahead` of v is fetched meanwhile.
inline void accumulate(
    Vec (&sum)[R][2], const float* v, int64_t ahead, const float* u, int64_t chunks) {
  static_assert(2 * R <= L && L * sizeof(float) == 64);  // a row is a cache line
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += R * L, u += L * P) {
#pragma GCC unroll 16
    for (int64_t k = 0; k < L; ++k) {
      if (k % 2 == 0 && k < 2 * R) __builtin_prefetch(v + ahead + k / 2 * L);
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
// output frames [R, C], or added to what is there.
template <bool pair>
__attribute__((noinline)) void multiply(
    const float* v, int64_t v_step, const float* u, int64_t u_step, int64_t chunks, float* even,
    float* odd, bool add) {
  for (int64_t r = 0; r < R * C; r += L) {
    __builtin_prefetch(even + r, 1);
    __builtin_prefetch(odd + r, 1);
  }
  const int64_t next = 4 * v_step;  // the group behind this one
  Vec a[R][2], b[R][2];
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) a[r][0] = a[r][1] = b[r][0] = b[r][1] = Vec::zero();
  accumulate(a, v + v_step, next, u + u_step, chunks);
  accumulate(b, v + 2 * v_step, next, u + 2 * u_step, chunks);
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < 2; ++i) {
      const Vec both = a[r][i], change = b[r][i];
      a[r][i] = both + change;
      b[r][i] = both - change;
    }
  }
  accumulate(a, v, next, u, chunks);
  if (pair) accumulate(b, v + 3 * v_step, next, u + 3 * u_step, chunks);
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t i = 0; i < 2; ++i) {
      float *to = even + r * C + i * W, *next = odd + r * C + i * W;
      (add ? Vec::load(to) + a[r][i] : a[r][i]).store(to);
      if (pair) (add ? Vec::load(next) + b[r][i] : b[r][i]).store(next);
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

// All tiles of a slab by one panel.
template <class T>
void multiply_panel(const Slab& slab, int64_t panel) {
  const CausalConv3d& args = slab.args;
  const int64_t frame_step = slab.frame_step(), v_step = Slab::block_chunks(args) * R * L;
  const int64_t columns = std::min(P, args.outputs - panel * P);
  for (int64_t block = 0; block < Slab::blocks(args); ++block) {
    transform_weights<T>(slab, panel, block);
    const float* inputs = slab.v + block * 16 * slab.position_step();
    for (int64_t column = 0; column < columns; column += C) {
      float* products = slab.m + column / C * 32 * frame_step;
      for (int64_t position = 0; position < 16; ++position) {
        const float* v = inputs + position * slab.position_step();
        const float* u = slab.u + 4 * position * slab.u_step() + column;
        float *even = products + 2 * position * frame_step, *odd = even + frame_step;
        for (int64_t n = 0; n < slab.groups; ++n) {
          const auto product = slab.pair[n] ? multiply<true> : multiply<false>;
          product(
              v + n * slab.group_step(), v_step, u, slab.u_step(), slab.chunks_of(block),
              even + n * R * C, odd + n * R * C, block > 0);
        }
      }
    }
  }
  for (int64_t n = 0; n < slab.count; ++n) {
    const Tile tile = slab.tile(n);
    for (int64_t column = 0; column < columns; column += C) {
      const float* m = slab.m + column / C * 32 * frame_step + n * C;
      transform_outputs<T>(args, tile, 0, panel * P + column, m, 2 * frame_step);
      if (!tile.is_pair(args)) continue;
      transform_outputs<T>(args, tile, 1, panel * P + column, m + frame_step, 2 * frame_step);
    }
  }
}

template <class T>
void convolve(const CausalConv3d& args, int64_t begin, int64_t end) {
  const int64_t most = Slab::most_groups(args, end - begin);
  const int64_t groups = (end - begin + R - 1) / R, slabs = (groups + most - 1) / most;
  Slab slab(args, most);
  Aligned<T> zeros(args.chunks() * L);
  std::fill_n(static_cast<T*>(zeros), args.chunks() * L, T{});
  for (int64_t index = 0; index < slabs; ++index) {
    slab.first = begin + index * groups / slabs * R;
    slab.count = std::min(end, begin + (index + 1) * groups / slabs * R) - slab.first;
    slab.groups = (slab.count + R - 1) / R;
    std::fill_n(slab.pair, slab.groups, false);
    for (int64_t n = 0; n < slab.groups * R; ++n) {  // a last group repeats its last tile
      const Tile tile = slab.tile(n);
      slab.pair[n / R] |= tile.is_pair(args);
      transform_inputs<T>(slab, tile, n, zeros);
    }
    slab.any_pair = std::any_of(slab.pair, slab.pair + slab.groups, [](bool some) { return some; });
    for (int64_t panel = 0; panel < args.panels(); ++panel) multiply_panel<T>(slab, panel);
  }
}

}  // namespace

void conv3d_winograd(const CausalConv3d& args, int64_t begin, int64_t end) {
  args.half ? convolve<bf16>(args, begin, end) : convolve<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
