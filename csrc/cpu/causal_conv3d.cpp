// causal_conv3d with 3x3x3 taps by Winograd's F(2, 3) along time, rows and columns.
//
// A tile is 2 x 2 x 2 outputs. The 4 x 4 x 4 inputs that it sees are read where they lie (history,
// x, or zeros around them), transformed, multiplied by the packed weight, one matrix product for
// each of 64 positions, and transformed back: 64 products of channels instead of 216. Along one
// axis, with d the inputs and g the taps:
//
//   v = (d0 - d2, d1 + d2, d2 - d1, d3 - d1)      u = (g0, (g0 + g1 + g2)/2, (g0 - g1 + g2)/2, g2)
//   m = u * v      y = (m0 + m1 + m2, m1 - m2 + m3)
//
// A last odd frame needs only the first three positions along time.
#include "cpu/causal_conv3d.h"

#include <algorithm>
#include <memory>

#include "livetalk/simd.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, L = conv3d_lanes, P = conv3d_panel;
// Tiles of one inner product: 4 * R accumulators beside 2 weights and an input.
constexpr int64_t R = W == 16 ? 7 : W == 8 ? 3 : 2;
constexpr int64_t C = 2 * W;      // outputs of one inner product
constexpr int64_t max_groups = 70 / R;  // tiles that the weights are read once for
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
};

// Where the 4 x 4 pixels of one of the frames that a tile sees lie.
void find_pixels(
    const CausalConv3d& args, const Tile& tile, int64_t offset, const float* zeros,
    const float** pixels) {
  int64_t frame = tile.frame + offset - args.zero_frames;
  const Video& video = frame < args.stored ? args.history : args.x;
  const bool real = frame >= 0;
  if (frame >= args.stored) frame -= args.stored;
  const float* base = real ? video.data + tile.batch * video.batch + frame * video.frame : zeros;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t row = tile.row + i - args.top;
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t column = tile.column + j - args.left;
      const bool inside =
          real && row >= 0 && row < args.height && column >= 0 && column < args.width;
      pixels[4 * i + j] = inside ? base + row * video.row + column * video.column : zeros;
    }
  }
}

// Transformed inputs of the tiles of one group: [16 rows and columns][4 times][chunks][R][L].
void transform_inputs(
    const CausalConv3d& args, const Tile& tile, bool pair, const float* zeros, float* v,
    int64_t position_step) {
  const float* pixels[4][16];
  for (int64_t frame = 0; frame < (pair ? 4 : 3); ++frame) {
    find_pixels(args, tile, frame, zeros, pixels[frame]);
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
void multiply(
    const float* v, const float* u, int64_t chunks, float* even, float* odd, int64_t stride) {
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
      a[r][i].store(even + r * stride + i * W);
      if (pair) b[r][i].store(odd + r * stride + i * W);
    }
  }
}

// 16 positions of rows and columns of one output frame of a tile to its pixels.
void transform_outputs(
    const CausalConv3d& args, const Tile& tile, int64_t frame, const float* m,
    int64_t position_step) {
  const int64_t rows = std::min<int64_t>(2, args.rows - tile.row);
  const int64_t columns = std::min<int64_t>(2, args.columns - tile.column);
  const int64_t image = tile.batch * args.frames + tile.frame + frame;
  float* out =
      args.out + ((image * args.rows + tile.row) * args.columns + tile.column) * args.outputs;
  const auto transform = [&](int64_t channel, auto... n) {
    Vec y[16];
    for (int64_t i = 0; i < 16; ++i) y[i] = Vec::load(m + i * position_step + channel);
    for (int64_t i = 0; i < 4; ++i) backward<4>(y + i);
    for (int64_t i = 0; i < 2; ++i) backward<1>(y + 4 * i);
    const Vec bias = args.bias ? Vec::load(args.bias + channel, n...) : Vec::zero();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        (y[4 * i + j] + bias).store(out + (i * args.columns + j) * args.outputs + channel, n...);
      }
    }
  };
  int64_t channel = 0;
  for (; channel + W <= args.outputs; channel += W) transform(channel);
  if (channel < args.outputs) transform(channel, args.outputs - channel);
}

}  // namespace

void causal_conv3d(const CausalConv3d& args, int64_t begin, int64_t end) {
  const int64_t chunks = conv3d_chunks(args.inputs), panels = conv3d_panels(args.outputs);
  const int64_t width = panels * P, group_size = 4 * chunks * R * L;
  const int64_t all_groups = (end - begin + R - 1) / R;
  const int64_t blocks = (all_groups + max_groups - 1) / max_groups;
  const int64_t groups = (all_groups + blocks - 1) / blocks;
  const int64_t v_step = groups * group_size, frame_step = groups * R * width;
  const std::unique_ptr<float[]> scratch(new float[16 * (v_step + 2 * frame_step) + chunks * L]);
  float *v = scratch.get(), *m = v + 16 * v_step, *zeros = m + 32 * frame_step;
  std::fill_n(zeros, chunks * L, 0.0f);

  for (; begin < end; begin += groups * R) {
    const int64_t count = std::min(groups * R, end - begin), used = (count + R - 1) / R;
    // Groups may mix pairs of frames and a single one, which then leaves its second frame unused.
    bool pair[max_groups] = {};
    for (int64_t n = 0; n < used * R; ++n) {
      // A last group that is not full repeats its last tile.
      const Tile tile(args, begin + std::min(n, count - 1));
      pair[n / R] |= tile.frame + 1 < args.frames;
    }
    for (int64_t n = 0; n < used * R; ++n) {
      const Tile tile(args, begin + std::min(n, count - 1));
      float* to = v + n / R * group_size + n % R * L;
      transform_inputs(args, tile, tile.frame + 1 < args.frames, zeros, to, v_step);
    }
    for (int64_t position = 0; position < 16; ++position) {
      const float* u = args.packed + position * panels * 4 * chunks * L * P;
      float *even = m + 2 * position * frame_step, *odd = even + frame_step;
      for (int64_t panel = 0; panel < panels; ++panel, u += 4 * chunks * L * P) {
        for (int64_t column = 0; column < P; column += C) {
          if (panel * P + column >= args.outputs) break;
          for (int64_t group = 0; group < used; ++group) {
            const int64_t offset = group * R * width + panel * P + column;
            const float* inputs = v + position * v_step + group * group_size;
            const auto product = pair[group] ? multiply<true> : multiply<false>;
            product(inputs, u + column, chunks, even + offset, odd + offset, width);
          }
        }
      }
    }
    for (int64_t n = 0; n < count; ++n) {
      const Tile tile(args, begin + n);
      transform_outputs(args, tile, 0, m + n * width, 2 * frame_step);
      if (tile.frame + 1 < args.frames) {
        transform_outputs(args, tile, 1, m + frame_step + n * width, 2 * frame_step);
      }
    }
  }
}

void pack_conv3d(const PackConv3d& args, int64_t begin, int64_t end) {
  const int64_t inputs = conv3d_chunks(args.inputs) * L, panels = conv3d_panels(args.outputs);
  const auto transform = [](double* taps, int64_t step) {  // 3 taps to 4 positions
    const double outer = taps[0] + taps[2 * step], middle = taps[step];
    taps[3 * step] = taps[2 * step];
    taps[step] = 0.5 * (outer + middle);
    taps[2 * step] = 0.5 * (outer - middle);
  };
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t i = 0; i < inputs; ++i) {
      float out[64][P] = {};
      const int64_t count = i < args.inputs ? std::min(P, args.outputs - panel * P) : 0;
      for (int64_t o = 0; o < count; ++o) {
        const float* weight = args.weight + (panel * P + o) * args.stride[0] + i * args.stride[1];
        double taps[64];  // rounded once
        for (int64_t t = 0; t < 3; ++t) {
          for (int64_t h = 0; h < 3; ++h) {
            for (int64_t w = 0; w < 3; ++w) {
              taps[16 * t + 4 * h + w] =
                  weight[t * args.stride[2] + h * args.stride[3] + w * args.stride[4]];
            }
            transform(taps + 16 * t + 4 * h, 1);
          }
          for (int64_t w = 0; w < 4; ++w) transform(taps + 16 * t + w, 4);
        }
        for (int64_t n = 0; n < 16; ++n) transform(taps + n, 16);
        for (int64_t n = 0; n < 64; ++n) out[n][o] = static_cast<float>(taps[n]);
      }
      for (int64_t time = 0; time < 4; ++time) {
        for (int64_t position = 0; position < 16; ++position) {
          const int64_t row = ((position * panels + panel) * 4 + time) * inputs + i;
          std::copy_n(out[16 * time + position], P, args.packed + row * P);
        }
      }
    }
  }
}

}  // namespace livetalk::LIVETALK_ISA
