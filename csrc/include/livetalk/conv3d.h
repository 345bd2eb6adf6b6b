// Shared by the kernels of causal_conv3d: addresses of pixels and weights.
#pragma once

#include "cpu/causal_conv3d.h"
#include "livetalk/matmul.h"

namespace livetalk::LIVETALK_ISA {

// A frame, given by its index including zero frames: its first pixel, null for a zero frame, and
// the video that contains it.
template <class T>
struct Frame {
  const T* pixels = nullptr;
  const Video* video = nullptr;

  Frame(const CausalConv3d& args, int64_t batch, int64_t frame) {
    frame -= args.zero_frames;
    if (frame < 0) return;
    video = frame < args.stored ? &args.history : &args.x;
    if (frame >= args.stored) frame -= args.stored;
    pixels = static_cast<const T*>(video->data) + batch * video->batch + frame * video->frame;
  }

  // A row, given by its index including the border; null outside.
  const T* row(const CausalConv3d& args, int64_t row) const {
    row -= args.top;
    return pixels && row >= 0 && row < args.height ? pixels + row * video->row : nullptr;
  }

  // A pixel's channels, given by its indices including the border; `zeros` outside.
  const T* pixel(const CausalConv3d& args, int64_t at_row, int64_t column, const T* zeros) const {
    const T* found = row(args, at_row);
    column -= args.left;
    return found && column >= 0 && column < args.width ? found + column * video->column : zeros;
  }
};

// Chunks of inputs whose rows are together at a tap of a packed weight of T: 64 bytes of inputs.
template <class T>
constexpr int64_t conv3d_joined = 64 / (conv3d_lanes * static_cast<int64_t>(sizeof(T)));

// Where a chunk's weights of the first tap are in a panel, and how far those of the next tap are
// from there.
template <class T>
struct ChunkPlace {
  int64_t first, step;

  ChunkPlace(int64_t chunks, int64_t taps, int64_t chunk) {
    constexpr int64_t size = conv3d_lanes * conv3d_panel;
    const int64_t together = chunk % conv3d_joined<T>, before = chunk - together;
    step = conv3d_joined<T> == 1 ? size : std::min(conv3d_joined<T>, chunks - before) * size;
    first = (before * taps + together) * size;
  }
};

// Two rows of a packed weight, of inputs k and k + 1, k even: W outputs of each, from `column` of
// the panel on. p is where input k's row would be if rows were not interleaved in pairs.
inline void load_rows(const float* p, int64_t column, Vec& even, Vec& odd) {
  even = Vec::load(p + column);
  odd = Vec::load(p + conv3d_panel + column);
}
inline void load_rows(const bf16* p, int64_t column, Vec& even, Vec& odd) {
  Vec::load_pairs(p + 2 * column, even, odd);
}

}  // namespace livetalk::LIVETALK_ISA
