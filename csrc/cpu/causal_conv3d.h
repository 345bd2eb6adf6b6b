#pragma once

#include <algorithm>

#include "cpu/kernels.h"

namespace livetalk {

// Frames of fp32 or bf16; strides in elements, those of channels are 1.
struct Video {
  const void* data;
  int64_t batch, frame, row, column;
};

constexpr int64_t conv3d_lanes = 16;  // inputs that are adjacent in a packed weight
constexpr int64_t conv3d_panel = 32;  // outputs that are adjacent in a packed weight
constexpr int64_t conv3d_tile = 4;    // rows and columns of outputs that Winograd's makes together
constexpr int64_t conv3d_most_tiles = 70;  // of Winograd's that a weight is transformed once for, at most

inline int64_t conv3d_chunks(int64_t inputs) { return (inputs + conv3d_lanes - 1) / conv3d_lanes; }
inline int64_t conv3d_panels(int64_t outputs) {
  return (outputs + conv3d_panel - 1) / conv3d_panel;
}

// A convolution, all of it channels-last. x, history, packed and out are fp32, or bf16 if `half`.
struct CausalConv3d {
  Video history, x;
  bool half;
  int64_t zero_frames, stored;  // frames before those of x: zeros, then the history's
  int64_t height, width, inputs;
  int64_t top, left;  // zero rows and columns before the image
  int64_t taps[3], stride[3];
  const void* packed;  // of pack_conv3d
  const float* bias;   // [outputs] or null
  void* out;           // [batch, frames, rows, columns, outputs], contiguous
  int64_t batch, frames, rows, columns, outputs;

  int64_t all_taps() const { return taps[0] * taps[1] * taps[2]; }
  int64_t chunks() const { return conv3d_chunks(inputs); }
  int64_t panels() const { return conv3d_panels(outputs); }
  int64_t pixels() const { return batch * frames * rows * columns; }
  // Whether each output sees one frame: of one tap along time, or of more of which the others are
  // on zeros.
  bool flat() const { return taps[0] == 1 || (frames == 1 && zero_frames == taps[0] - 1); }
  // Winograd's: pairs of output frames (the last may be alone; if flat, all are), and tiles of
  // pixels.
  int64_t pair() const { return flat() ? 1 : 2; }
  int64_t pairs() const { return (frames + pair() - 1) / pair(); }
  // Positions along time that the outputs from `frame` on need in a pair.
  int64_t times(int64_t frame) const { return flat() ? 1 : frame + 1 < frames ? 4 : 3; }
  int64_t tile_rows() const { return (rows + conv3d_tile - 1) / conv3d_tile; }
  int64_t tile_columns() const { return (columns + conv3d_tile - 1) / conv3d_tile; }
  int64_t tiles() const { return batch * pairs() * tile_rows() * tile_columns(); }
};

// Work of the kernels that compute the formula directly, as often as there are parts that the
// panels are cut into.
struct DirectConv3d : CausalConv3d {
  int64_t parts;
};

struct PackConv3d {
  const void* weight;  // [outputs, inputs, taps], fp32 or bf16
  bool half;
  int64_t stride[5], taps[3];
  int64_t inputs, outputs;
  // fp32 [panels, chunks, taps, lanes, panel], or bf16 [panels, pairs of chunks, taps, 2 chunks,
  // lanes / 2, panel, 2], where a last pair may have one chunk; inputs come in chunks of `lanes`,
  // with zeros beyond those of the weight.
  void* packed;

  int64_t all_taps() const { return taps[0] * taps[1] * taps[2]; }
  int64_t panel_size() const {
    return all_taps() * conv3d_chunks(inputs) * conv3d_lanes * conv3d_panel;
  }
  int64_t size() const { return conv3d_panels(outputs) * panel_size(); }
};

}  // namespace livetalk

// Panels [begin, end) of outputs.
LIVETALK_KERNEL(pack_conv3d, const PackConv3d& args, int64_t begin, int64_t end)
// Pixels [begin, end) of parts x pixels.
LIVETALK_KERNEL(conv3d_direct, const DirectConv3d& args, int64_t begin, int64_t end)
// Rows [begin, end) of parts x batch x rows, of all frames; bf16 only.
LIVETALK_KERNEL(conv3d_tiles, const DirectConv3d& args, int64_t begin, int64_t end)
// Tiles [begin, end) of batch x tile rows x tile columns x pairs.
LIVETALK_KERNEL(conv3d_winograd, const CausalConv3d& args, int64_t begin, int64_t end)
