// causal_conv3d with 3x3x3 or 1x3x3 taps by Winograd's F(2, 3) along time and F(4, 3) along rows and
// columns.
//
// A tile is 2 x 4 x 4 outputs. The 4 x 6 x 6 inputs that it sees are read where they are (history,
// x, or zeros around them), transformed, multiplied by the transformed weight, one matrix product
// for each of 144 positions, and transformed back: 144 products of channels instead of 864. Along
// time, with d the inputs and g the taps:
//
//   v = (d0 - d2, d1 + d2, d2 - d1, d3 - d1)      u = (g0, (g0 + g1 + g2)/2, (g0 - g1 + g2)/2, g2)
//   m = u * v      y = (m0 + m1 + m2, m1 - m2 + m3)
//
// Along rows and columns, inputs, taps and outputs are polynomials, multiplied by their values at
// 0, p, -p, q, -q and infinity (Toom and Cook). Results are rounded half as much with p = 11/16 and
// q = 3/2 as with the usual 1 and 2; both have squares and products that fp32 holds exactly.
//
// A last odd frame needs only the first three positions along time, and a frame that sees no other
// one. The weight is transformed where it is used, a row of positions of a panel of some chunks at a
// time, which then stays in the cache for all tiles of a slab: stored that way it would be 144 / 27
// as large. Arithmetic is fp32, whatever is stored.
#include "livetalk/conv3d.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
constexpr int64_t M = conv3d_tile, N = M + 2, S = N * N;  // a tile's rows, those it sees, positions
// Tiles of one inner product: 2 * R sums and 2 * R of a piece, plus 2 weights and an input.
constexpr int64_t R = W == 16 ? 7 : W == 8 ? 3 : 2;
constexpr int64_t C = 2 * W;              // outputs of one inner product
constexpr int64_t max_groups = conv3d_most_tiles / R;
constexpr int64_t slab_bytes = 16 << 20;  // of their transformed inputs, at most
constexpr int64_t max_chunks = 6;         // whose weights stay in the cache
static_assert(P % C == 0 && L % W == 0);

// The points, their squares, and the products of each point's distances to the others, which outputs
// are divided by.
constexpr float p = 0.6875f, q = 1.5f, pp = p * p, qq = q * q;
constexpr float at_zero = pp * qq, at_p = 2 * pp * (pp - qq), at_q = 2 * qq * (qq - pp);

inline Vec times(float factor, Vec x) { return Vec::all(factor) * x; }
// factor * x + y
inline Vec fma(float factor, Vec x, Vec y) { return Vec::fma(Vec::all(factor), x, y); }

// Six inputs along an axis to the six positions, in place.
template <int64_t step>
inline void forward(Vec* d) {
  const Vec d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
  const Vec even_p = fma(-qq, d2, d4), odd_p = fma(-qq, d1, d3);
  const Vec even_q = fma(-pp, d2, d4), odd_q = fma(-pp, d1, d3);
  d[0] = fma(at_zero, d[0], fma(-(pp + qq), d2, d4));
  d[step] = fma(p, odd_p, even_p);
  d[2 * step] = fma(-p, odd_p, even_p);
  d[3 * step] = fma(q, odd_q, even_q);
  d[4 * step] = fma(-q, odd_q, even_q);
  d[5 * step] = fma(at_zero, d1, fma(-(pp + qq), d3, d[5 * step]));
}

// The six positions along an axis to four outputs, in place of the first four.
template <int64_t step>
inline void backward(Vec* m) {
  const Vec even_p = m[step] + m[2 * step], odd_p = m[step] - m[2 * step];
  const Vec even_q = m[3 * step] + m[4 * step], odd_q = m[3 * step] - m[4 * step];
  const auto sum = [&](float power_p, Vec of_p, float power_q, Vec of_q) {
    return fma(power_p / at_p, of_p, times(power_q / at_q, of_q));
  };
  m[0] = fma(1 / at_zero, m[0], sum(1, even_p, 1, even_q));
  m[step] = sum(p, odd_p, q, odd_q);
  m[2 * step] = sum(pp, even_p, qq, even_q);
  m[3 * step] = m[5 * step] + sum(pp * p, odd_p, qq * q, odd_q);
}

// Three taps to the six positions along an axis.
inline void spread(Vec first, Vec second, Vec third, Vec* to) {
  const Vec even_p = fma(pp, third, first), even_q = fma(qq, third, first);
  to[0] = first;
  to[1] = fma(p, second, even_p);
  to[2] = fma(-p, second, even_p);
  to[3] = fma(q, second, even_q);
  to[4] = fma(-q, second, even_q);
  to[5] = third;
}

// The same for one position: the factors of the three taps.
constexpr float factors[N][3] = {
    {1, 0, 0}, {1, p, pp}, {1, -p, pp}, {1, q, qq}, {1, -q, qq}, {0, 0, 1}};

// Pairs of frames come first: the second one reads half of the first one's inputs again.
struct Tile {
  int64_t batch, frame, row, column;  // its first output

  Tile(const CausalConv3d& args, int64_t index) {
    frame = args.pair() * (index % args.pairs());
    index /= args.pairs();
    column = M * (index % args.tile_columns());
    index /= args.tile_columns();
    row = M * (index % args.tile_rows());
    batch = index / args.tile_rows();
  }
};

// A thread's work on some tiles: they are multiplied a few chunks of inputs at a time.
//
// Attributes: v [chunk block][S rows and columns][group][4 times][chunk][R][L], the transformed
// inputs; u [N columns][4 times][chunk][L][P], one row of positions of a panel of one chunk block's
// transformed weights, apart by a cache line more so that they do not contend for the same places in
// the cache; m [P / C][S rows and columns][2 frames][group][R][C], products.
struct Slab {
  const CausalConv3d& args;
  int64_t first, count, groups;  // of tiles
  int64_t times[max_groups];     // positions along time that a group needs: 4, 3 or 1
  int64_t all_times;             // that any group needs
  Aligned<float> v, u, m;

  static int64_t blocks(const CausalConv3d& args) {
    return (args.chunks() + max_chunks - 1) / max_chunks;
  }
  static int64_t block_chunks(const CausalConv3d& args) {
    return (args.chunks() + blocks(args) - 1) / blocks(args);
  }
  static int64_t most_groups(const CausalConv3d& args, int64_t tiles) {
    const int64_t group_bytes = 4 * S * args.chunks() * L * R * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::clamp<int64_t>(slab_bytes / group_bytes, 4, max_groups);
    return std::min(most, (tiles + R - 1) / R);
  }

  Slab(const CausalConv3d& args, int64_t most)
      : args(args),
        v(4 * S * blocks(args) * block_chunks(args) * most * R * L),
        u(4 * N * u_step()),
        m(2 * S * most * R * P) {}

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
  const int64_t times = args.times(tile.frame), first = args.flat() ? args.taps[0] - 1 : 0;
  const T* pixels[4][S];
  for (int64_t frame = 0; frame < times; ++frame) {
    const Frame<T> found(args, tile.batch, tile.frame + first + frame);
    for (int64_t i = 0; i < S; ++i) {
      pixels[frame][i] = found.pixel(args, tile.row + i / N, tile.column + i % N, zeros);
    }
  }
  const int64_t position_step = slab.position_step(), block_chunks = Slab::block_chunks(args);
  const int64_t time_step = block_chunks * R * L;
  const auto transform = [&](int64_t channel, float* to, auto... left) {
    const auto part = [&](int64_t time, auto load) {
      Vec d[S];
      for (int64_t i = 0; i < S; ++i) d[i] = load(i);
      for (int64_t i = 0; i < N; ++i) forward<N>(d + i);
      for (int64_t i = 0; i < N; ++i) {
        forward<1>(d + N * i);
        float* row = to + N * i * position_step + time * time_step;
        for (int64_t j = 0; j < N; ++j) d[N * i + j].store(row + j * position_step);
      }
    };
    const auto at = [&](int64_t frame, int64_t i) {
      return Vec::load(pixels[frame][i] + channel, left...);
    };
    const auto fetched = [&](int64_t frame, int64_t i) {  // the next call's, meanwhile
      __builtin_prefetch(pixels[frame][i] + channel + L);
      return at(frame, i);
    };
    if (times == 1) return part(0, [&](int64_t i) { return fetched(0, i); });
    part(0, [&](int64_t i) { return fetched(0, i) - at(2, i); });
    part(1, [&](int64_t i) { return fetched(1, i) + at(2, i); });
    part(2, [&](int64_t i) { return fetched(2, i) - at(1, i); });
    if (times == 4) part(3, [&](int64_t i) { return fetched(3, i) - at(1, i); });
  };
  float* own = slab.v + n / R * slab.group_step() + n % R * L;
  for (int64_t channel = 0; channel < args.chunks() * L; channel += W) {
    const int64_t chunk = channel / L, block = chunk / block_chunks;
    float* to = own + block * S * position_step + chunk % block_chunks * R * L + channel % L;
    const int64_t left = args.inputs - channel;
    left >= W ? transform(channel, to) : transform(channel, to, std::max<int64_t>(left, 0));
  }
}

// A panel's taps of one chunk block, of the last `frames` along time, to their positions in one row.
template <class T, int64_t frames>
void transform_weights(const Slab& slab, int64_t panel, int64_t block, int64_t row) {
  constexpr int64_t ahead = 4;  // inputs
  const CausalConv3d& args = slab.args;
  const int64_t u_step = slab.u_step(), first = block * Slab::block_chunks(args);
  const T* packed = static_cast<const T*>(args.packed) +
                    panel * args.chunks() * args.all_taps() * L * P;
  const auto place = [&](int64_t chunk) {
    ChunkPlace<T> place(args.chunks(), args.all_taps(), first + chunk);
    place.first += 9 * (args.taps[0] - frames) * place.step;
    return place;
  };
  const Vec above = Vec::all(factors[row][0]), middle = Vec::all(factors[row][1]),
            below = Vec::all(factors[row][2]), half = Vec::all(0.5f);
  for (int64_t k = 0; k < slab.chunks_of(block) * L; k += 2) {
    const ChunkPlace<T> own_place = place(k / L), next_place = place((k + ahead) / L);
    const T* rows = packed + own_place.first + k % L * P;
    const T* next = packed + next_place.first + (k + ahead) % L * P;
    for (int64_t column = 0; column < P; column += W) {
      Vec sums[2][9];  // [input][3 times][3 columns]
      for (int64_t t = 0; t < frames; ++t) {
        for (int64_t w = 0; w < 3; ++w) {
          Vec even[3], odd[3];
          for (int64_t h = 0; h < 3; ++h) {
            const int64_t tap = 9 * t + 3 * h + w;
            __builtin_prefetch(next + tap * next_place.step + 2 * column);
            load_rows(rows + tap * own_place.step, column, even[h], odd[h]);
          }
          const auto sum = [&](const Vec* taps) {
            return Vec::fma(below, taps[2], Vec::fma(middle, taps[1], above * taps[0]));
          };
          sums[0][3 * t + w] = sum(even);
          sums[1][3 * t + w] = sum(odd);
        }
      }
      for (int64_t input = 0; input < 2; ++input) {
        Vec* own = sums[input];
        Vec part[4][3];
        for (int64_t w = 0; w < 3; ++w) {
          part[0][w] = own[w];
          if constexpr (frames == 3) {
            const Vec outer = own[w] + own[6 + w];
            part[1][w] = half * (outer + own[3 + w]);
            part[2][w] = half * (outer - own[3 + w]);
            part[3][w] = own[6 + w];
          }
        }
        float* to = slab.u + (k + input) * P + column;
        for (int64_t time = 0; time < slab.all_times; ++time) {
          Vec all[N];
          spread(part[time][0], part[time][1], part[time][2], all);
          for (int64_t w = 0; w < N; ++w) all[w].store(to + (4 * w + time) * u_step);
        }
      }
    }
  }
}

using Sums = Vec[R][2];

// sums += v [R, inputs] times u [inputs, C], a chunk of inputs at a time: rounding grows with the
// length of a sum, and Winograd's outputs are differences of larger ones. What comes `ahead` of v is
// fetched meanwhile.
inline void accumulate(Sums& sums, const float* v, int64_t ahead, const float* u, int64_t chunks) {
  static_assert(2 * R <= L && L * sizeof(float) == 64);  // a row is a cache line
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += R * L, u += L * P) {
    Sums part;
#pragma GCC unroll 16
    for (int64_t k = 0; k < L; ++k) {
      if (k % 2 == 0 && k < 2 * R) __builtin_prefetch(v + ahead + k / 2 * L);
      const Vec first = Vec::load(u + k * P), second = Vec::load(u + k * P + W);
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        const Vec value = Vec::all(v[r * L + k]);
        part[r][0] = k ? Vec::fma(value, first, part[r][0]) : value * first;
        part[r][1] = k ? Vec::fma(value, second, part[r][1]) : value * second;
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t i = 0; i < 2; ++i) sums[r][i] = sums[r][i] + part[r][i];
    }
  }
}

// Products of a group of tiles at one position of rows and columns, summed along time into both
// output frames [R, C], or added to what is there. One frame's sums at a time are in registers.
template <int64_t times>
__attribute__((noinline)) void multiply(
    const float* v, int64_t v_step, const float* u, int64_t u_step, int64_t chunks, float* even,
    float* odd, bool add) {
  for (int64_t r = 0; r < R * C; r += L) {
    __builtin_prefetch(even + r, 1);
    __builtin_prefetch(odd + r, 1);
  }
  const int64_t next = 4 * v_step;  // the group behind this one
  Sums sums, others;
  const auto all = [](auto f) {
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      for (int64_t i = 0; i < 2; ++i) f(r, i);
    }
  };
  const auto store = [&](float* to) {
    all([&](int64_t r, int64_t i) {
      float* own = to + r * C + i * W;
      (add ? Vec::load(own) + sums[r][i] : sums[r][i]).store(own);
    });
  };
  all([&](int64_t r, int64_t i) { sums[r][i] = Vec::zero(); });
  if constexpr (times > 1) {
    accumulate(sums, v + v_step, next, u + u_step, chunks);
    all([&](int64_t r, int64_t i) {
      others[r][i] = sums[r][i];
      sums[r][i] = Vec::zero();
    });
    accumulate(sums, v + 2 * v_step, next, u + 2 * u_step, chunks);
    all([&](int64_t r, int64_t i) {
      const Vec both = others[r][i], change = sums[r][i];
      sums[r][i] = both + change;
      others[r][i] = both - change;
    });
  }
  accumulate(sums, v, next, u, chunks);
  store(even);
  if constexpr (times == 4) {
    all([&](int64_t r, int64_t i) { sums[r][i] = others[r][i]; });
    accumulate(sums, v + 3 * v_step, next, u + 3 * u_step, chunks);
    store(odd);
  }
}

// All positions of rows and columns, C outputs each, of one output frame of a tile to its pixels.
template <class T>
void transform_outputs(
    const CausalConv3d& args, const Tile& tile, int64_t frame, int64_t first, const float* m,
    int64_t position_step) {
  const int64_t rows = std::min(M, args.rows - tile.row);
  const int64_t columns = std::min(M, args.columns - tile.column);
  const int64_t image = tile.batch * args.frames + tile.frame + frame;
  T* out = static_cast<T*>(args.out) +
           ((image * args.rows + tile.row) * args.columns + tile.column) * args.outputs;
  const auto transform = [&](int64_t channel, auto... n) {
    const auto pixel = [&](int64_t i, int64_t j) {
      return out + (i * args.columns + j) * args.outputs + channel;
    };
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) __builtin_prefetch(pixel(i, j), 1);
    }
    Vec y[S];
    for (int64_t i = 0; i < S; ++i) y[i] = Vec::load(m + i * position_step + channel - first);
    for (int64_t i = 0; i < N; ++i) backward<N>(y + i);
    for (int64_t i = 0; i < M; ++i) backward<1>(y + N * i);
    const Vec bias = args.bias ? Vec::load(args.bias + channel, n...) : Vec::zero();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        (y[N * i + j] + bias).store(pixel(i, j), n...);
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
  const auto multiply_row = [&](int64_t block, int64_t row) {
    const float* inputs = slab.v + (block * S + row * N) * slab.position_step();
    for (int64_t column = 0; column < columns; column += C) {
      float* products = slab.m + (column / C * S + row * N) * 2 * frame_step;
      for (int64_t position = 0; position < N; ++position) {
        const float* v = inputs + position * slab.position_step();
        const float* u = slab.u + 4 * position * slab.u_step() + column;
        float *even = products + 2 * position * frame_step, *odd = even + frame_step;
        for (int64_t n = 0; n < slab.groups; ++n) {
          const int64_t times = slab.times[n];
          const auto product = times == 4 ? multiply<4> : times == 3 ? multiply<3> : multiply<1>;
          product(
              v + n * slab.group_step(), v_step, u, slab.u_step(), slab.chunks_of(block),
              even + n * R * C, odd + n * R * C, block > 0);
        }
      }
    }
  };
  for (int64_t block = 0; block < Slab::blocks(args); ++block) {
    for (int64_t row = 0; row < N; ++row) {
      args.flat() ? transform_weights<T, 1>(slab, panel, block, row)
                  : transform_weights<T, 3>(slab, panel, block, row);
      multiply_row(block, row);
    }
  }
  for (int64_t n = 0; n < slab.count; ++n) {
    const Tile tile = slab.tile(n);
    for (int64_t column = 0; column < columns; column += C) {
      const float* m = slab.m + column / C * 2 * S * frame_step + n * C;
      transform_outputs<T>(args, tile, 0, panel * P + column, m, 2 * frame_step);
      if (args.times(tile.frame) < 4) continue;
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
    std::fill_n(slab.times, slab.groups, 0);
    for (int64_t n = 0; n < slab.groups * R; ++n) {  // a last group repeats its last tile
      const Tile tile = slab.tile(n);
      slab.times[n / R] = std::max(slab.times[n / R], args.times(tile.frame));
      transform_inputs<T>(slab, tile, n, zeros);
    }
    slab.all_times = *std::max_element(slab.times, slab.times + slab.groups);
    for (int64_t panel = 0; panel < args.panels(); ++panel) multiply_panel<T>(slab, panel);
  }
}

}  // namespace

void conv3d_winograd(const CausalConv3d& args, int64_t begin, int64_t end) {
  args.half ? convolve<bf16>(args, begin, end) : convolve<float>(args, begin, end);
}

}  // namespace livetalk::LIVETALK_ISA
