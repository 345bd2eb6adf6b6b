// causal_conv3d in bf16 with any taps and strides, as products of tiles (AMX): 32 pixels by 32
// outputs, summed over 32 inputs of a tap at a time.
//
// A slab holds what some rows of outputs see, copied once: frames with their border, channels in
// chunks of 32. With a border of their own, rows are laid end to end, so that 32 outputs in a row
// see 32 consecutive pixels at every tap; those between two rows are multiplied too and left out
// at the end. With a stride, pixels that are multiplied by the same tap are together, in phases. A
// product reads its pixels as often as there are taps, a chunk at a time, from the first-level
// cache; weights come from the second-level one and are asked for early. Taps on zero frames are
// left out.
#include <vector>

#include "livetalk/conv3d.h"
#include "livetalk/tiles.h"

namespace livetalk::LIVETALK_ISA {
namespace {

constexpr int64_t W = Vec::width, P = conv3d_panel, K = tile_side;
constexpr int64_t slab_bytes = 1 << 20;  // half of the second cache where there are tiles
constexpr int64_t ahead = 4;             // how many products earlier weights are fetched
static_assert(P == tile_side && K == conv3d_lanes * conv3d_joined<bf16>);

// Some rows of outputs of all frames of a video, and what they see.
//
// Attributes: pixels [chunk][frame][row phase][column phase][row][pitch][K], a phase's rows and
// columns of those that are seen, from the first frame on that is not zero; plane, pixels of a
// frame's phase; taps, how far a tap's pixel is from an output's first; odd [tap][K][P], weights
// of a last chunk whose inputs are fewer than K, and zeros.
struct Slab {
  const DirectConv3d& args;
  int64_t chunks, first_frame, frames, pitch, most;  // rows at most
  int64_t batch, row, rows, plane;
  std::vector<int64_t> taps;
  const bf16 zeros[K] = {};
  Aligned<bf16> pixels, odd;

  Slab(const DirectConv3d& args, int64_t all_rows)
      : args(args),
        chunks((args.inputs + K - 1) / K),
        first_frame(args.zero_frames),
        frames(args.stride[0] * (args.frames - 1) + args.taps[0] - first_frame),
        pitch(phase_size(args.columns, 2)),
        most(fitting(all_rows)),
        taps(args.all_taps()),
        pixels((chunks * frames * phases() * phase_size(most, 1) * pitch + K) * K),
        odd(has_odd() ? args.all_taps() * K * P : 0) {
    std::fill_n(static_cast<bf16*>(odd), has_odd() ? args.all_taps() * K * P : 0, bf16{});
  }

  bool has_odd() const { return args.chunks() % 2; }
  int64_t phases() const { return args.stride[1] * args.stride[2]; }
  // Rows (1) or columns (2) of a phase that some outputs see.
  int64_t phase_size(int64_t outputs, int dim) const {
    return outputs - 1 + (args.taps[dim] + args.stride[dim] - 1) / args.stride[dim];
  }
  int64_t frame_step() const { return phases() * plane; }
  int64_t chunk_step() const { return frames * frame_step() * K; }

  int64_t fitting(int64_t all_rows) const {
    const int64_t row_pixels = chunks * frames * phases() * pitch;
    const int64_t fitting = slab_bytes / (row_pixels * K * static_cast<int64_t>(sizeof(bf16)));
    return std::clamp<int64_t>(fitting - phase_size(0, 1), 1, all_rows);
  }

  // Copies what `count` rows of outputs from `first` on see.
  void fill(int64_t image, int64_t first, int64_t count) {
    batch = image;
    row = first;
    rows = count;
    plane = phase_size(rows, 1) * pitch;
    for (int64_t tap = 0; tap < args.all_taps(); ++tap) {
      const int64_t image_taps = args.taps[1] * args.taps[2], t = tap / image_taps - first_frame;
      const int64_t h = tap % image_taps / args.taps[2], w = tap % args.taps[2];
      const int64_t sh = args.stride[1], sw = args.stride[2];
      taps[tap] = t * frame_step() + (h % sh * sw + w % sw) * plane + h / sh * pitch + w / sw;
    }
    const int64_t seen = args.stride[1] * (rows - 1) + args.taps[1];
    for (int64_t frame = 0; frame < frames; ++frame) {
      const Frame<bf16> found(args, batch, first_frame + frame);
      for (int64_t r = 0; r < seen; ++r) {
        bf16* to = pixels + (frame * frame_step() + r % args.stride[1] * args.stride[2] * plane +
                             r / args.stride[1] * pitch) * K;
        fill_row(found.row(args, args.stride[1] * row + r), found.video, to);
      }
    }
  }

  // `from` is null for a row of zeros.
  void fill_row(const bf16* from, const Video* video, bf16* to) {
    const int64_t seen = args.stride[2] * (args.columns - 1) + args.taps[2];
    const int64_t whole = args.inputs / K, left = args.inputs % K;
    for (int64_t phase = 0; phase < args.stride[2]; ++phase, to += plane * K) {
      for (int64_t c = phase, n = 0; c < seen; c += args.stride[2], ++n) {
        const int64_t column = c - args.left;
        const bool inside = from && column >= 0 && column < args.width;
        const bf16* pixel = inside ? from + column * video->column : zeros;
        bf16* own = to + n * K;
        for (int64_t chunk = 0; chunk < whole; ++chunk, own += chunk_step()) {
          std::memcpy(own, pixel, K * sizeof(bf16));
          if (inside) pixel += K;
        }
        if (!left) continue;
        std::memcpy(own, pixel, left * sizeof(bf16));
        std::fill_n(own + left, K - left, bf16{});
      }
    }
  }
};

// The outputs of a frame of a slab from the `first` on, of those laid end to end: sums [K, P] and bias.
void store_outputs(
    const Slab& slab, int64_t frame, int64_t first, int64_t channel, const float* sums) {
  const DirectConv3d& args = slab.args;
  const int64_t channels = std::min(P, args.outputs - channel);
  const int64_t image = (slab.batch * args.frames + frame) * args.rows;
  int64_t row = first / slab.pitch, column = first % slab.pitch;
  for (int64_t n = 0; n < K && row < slab.rows; ++n, sums += P) {
    if (column < args.columns) {
      bf16* to = static_cast<bf16*>(args.out) + channel +
                 ((image + slab.row + row) * args.columns + column) * args.outputs;
      const auto store = [&](int64_t k, auto... left) {
        const Vec bias = args.bias ? Vec::load(args.bias + channel + k, left...) : Vec::zero();
        (Vec::load(sums + k) + bias).store(to + k, left...);
      };
      for (int64_t k = 0; k < channels; k += W) {
        channels - k >= W ? store(k) : store(k, channels - k);
      }
    }
    if (++column == slab.pitch) {
      column = 0;
      ++row;
    }
  }
}

// All outputs of a slab in a panel.
void multiply_panel(Tiles& tiles, Slab& slab, int64_t panel) {
  const DirectConv3d& args = slab.args;
  const int64_t taps = args.all_taps(), whole = args.chunks() / 2;
  const bf16* packed = static_cast<const bf16*>(args.packed) +
                       panel * args.chunks() * taps * conv3d_lanes * P;
  if (slab.has_odd()) {
    const bf16* last = packed + whole * taps * K * P;
    for (int64_t tap = 0; tap < taps; ++tap) {
      std::memcpy(slab.odd + tap * K * P, last + tap * K / 2 * P, K / 2 * P * sizeof(bf16));
    }
  }
  const int64_t pixels = (slab.rows - 1) * slab.pitch + args.columns;
  const int64_t* offsets = slab.taps.data();
  alignas(64) float sums[K * P];
  for (int64_t frame = 0; frame < args.frames; ++frame) {
    const int64_t before = frame * args.stride[0];
    const int64_t zero_frames = std::max<int64_t>(0, args.zero_frames - before);
    for (int64_t first = 0; first < pixels; first += K) {
      const bf16* left = slab.pixels + (before * slab.frame_step() + first) * K;
      tiles.clear();
      for (int64_t chunk = 0; chunk < slab.chunks; ++chunk, left += slab.chunk_step()) {
        const bf16* right = chunk < whole ? packed + chunk * taps * K * P : slab.odd;
        for (int64_t tap = zero_frames * args.taps[1] * args.taps[2]; tap < taps; ++tap) {
          const bf16* own = right + tap * K * P;
          for (int64_t line = 0; line < K * P; line += 32) {
            __builtin_prefetch(own + ahead * K * P + line);
          }
          tiles.multiply(left + offsets[tap] * K, own);
        }
      }
      tiles.store(sums);
      store_outputs(slab, frame, first, panel * P, sums);
    }
  }
}

}  // namespace

void conv3d_tiles(const DirectConv3d& args, int64_t begin, int64_t end) {
  const int64_t all = args.batch * args.rows;
  Tiles tiles;
  Slab slab(args, std::min(args.rows, end - begin));
  while (begin < end) {
    const int64_t part = begin / all, image = begin % all / args.rows, row = begin % args.rows;
    const int64_t own = std::min(end - begin, args.rows - row);
    const int64_t slabs = (own + slab.most - 1) / slab.most;
    const int64_t panel = part * args.panels() / args.parts;
    const int64_t last = (part + 1) * args.panels() / args.parts;
    for (int64_t n = 0; n < slabs; ++n) {
      const int64_t first = n * own / slabs;
      slab.fill(image, row + first, (n + 1) * own / slabs - first);
      for (int64_t p = panel; p < last; ++p) multiply_panel(tiles, slab, p);
    }
    begin += own;
  }
}

}  // namespace livetalk::LIVETALK_ISA
