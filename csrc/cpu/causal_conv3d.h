#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Strides in elements; those of channels are 1.
struct Video {
  const float* data;
  int64_t batch, frame, row, column;
};

constexpr int64_t conv3d_lanes = 16;  // channels that lie together in a packed weight
constexpr int64_t conv3d_panel = 32;  // outputs that lie together in a packed weight

inline int64_t conv3d_chunks(int64_t inputs) { return (inputs + conv3d_lanes - 1) / conv3d_lanes; }
inline int64_t conv3d_panels(int64_t outputs) {
  return (outputs + conv3d_panel - 1) / conv3d_panel;
}
// Values of a packed weight.
inline int64_t conv3d_packed(int64_t inputs, int64_t outputs) {
  return 64 * conv3d_chunks(inputs) * conv3d_lanes * conv3d_panels(outputs) * conv3d_panel;
}

// A 3x3x3 convolution, all of it channels-last.
struct CausalConv3d {
  Video history, x;
  int64_t zero_frames, stored;  // frames before those of x: zeros, then the history's
  int64_t height, width, inputs;
  int64_t top, left;    // zero rows and columns before the image
  const float* packed;  // of pack_conv3d
  const float* bias;    // [outputs] or null
  float* out;           // [batch, frames, rows, columns, outputs], contiguous
  int64_t frames, rows, columns, outputs;

  // Pairs of output frames (the last may be alone), and tiles of 2 x 2 pixels.
  int64_t pairs() const { return (frames + 1) / 2; }
  int64_t tile_rows() const { return (rows + 1) / 2; }
  int64_t tile_columns() const { return (columns + 1) / 2; }
};

struct PackConv3d {
  const float* weight;  // [outputs, inputs, 3, 3, 3]
  int64_t stride[5];
  int64_t inputs, outputs;
  float* packed;  // [16, panels, 4, inputs up to whole chunks, panel]
};

}  // namespace livetalk

// Tiles [begin, end) of batch x pairs x tile rows x tile columns.
LIVETALK_KERNEL(causal_conv3d, const CausalConv3d& args, int64_t begin, int64_t end)
// Panels [begin, end) of outputs.
LIVETALK_KERNEL(pack_conv3d, const PackConv3d& args, int64_t begin, int64_t end)
