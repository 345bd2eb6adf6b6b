// The direct convolution in bf16 tiles on any CPU, the tiles in plain C++, with plain C arguments.
#include "cpu/causal_conv3d.h"

// Everything is contiguous: x and history [batch, frames, rows, columns, inputs], weight [outputs,
// inputs, taps], out as x. sizes: batch, inputs, outputs; frames of x, of history, zero frames;
// height, width, top, left; taps; stride; frames, rows and columns of out; parts of the panels.
extern "C" void convolve_in_tiles(
    const void* x, const void* history, const void* weight, const float* bias, void* packed,
    void* out, const int64_t* sizes) {
  using namespace livetalk;
  DirectConv3d conv{};
  const auto take = [&](auto&... to) { ((to = *sizes++), ...); };
  int64_t frames;
  take(conv.batch, conv.inputs, conv.outputs, frames, conv.stored, conv.zero_frames);
  take(conv.height, conv.width, conv.top, conv.left, conv.taps[0], conv.taps[1], conv.taps[2]);
  take(conv.stride[0], conv.stride[1], conv.stride[2], conv.frames, conv.rows, conv.columns);
  take(conv.parts);
  const int64_t row = conv.width * conv.inputs, frame = conv.height * row;
  conv.x = {x, frames * frame, frame, row, conv.inputs};
  conv.history = {history, conv.stored * frame, frame, row, conv.inputs};
  conv.half = true;
  conv.packed = packed;
  conv.bias = bias;
  conv.out = out;
  PackConv3d pack{};
  pack.weight = weight;
  pack.half = true;
  pack.inputs = conv.inputs;
  pack.outputs = conv.outputs;
  int64_t step = 1;
  for (int dim = 2; dim >= 0; --dim) {
    pack.taps[dim] = conv.taps[dim];
    pack.stride[dim + 2] = step;
    step *= conv.taps[dim];
  }
  pack.stride[1] = step;
  pack.stride[0] = step * conv.inputs;
  pack.packed = packed;
  scalar::pack_conv3d(pack, 0, conv3d_panels(conv.outputs));
  scalar::conv3d_direct(conv, 0, conv.parts * conv.pixels());
}
