// The parts of the cpu backend of causal_conv3d that are compiled; ops/causal_conv3d/cpu.py decides
// when they run.
#include "cpu/causal_conv3d.h"

#include "bindings/cpu.h"

namespace livetalk {
namespace {

Video video(const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "frames must be float32");
  STD_TORCH_CHECK(x.stride(1) == 1, "channels must be innermost in memory");
  return {floats(x), x.stride(0), x.stride(2), x.stride(3), x.stride(4)};
}

// weight [O, I, 3, 3, 3] in any memory format, fp32 -> what causal_conv3d_winograd multiplies by.
Tensor causal_conv3d_pack(Tensor weight) {
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "weight must be float32");
  PackConv3d args{};
  args.weight = floats(weight);
  for (int64_t dim = 0; dim < 5; ++dim) args.stride[dim] = weight.stride(dim);
  args.outputs = weight.size(0);
  args.inputs = weight.size(1);
  Tensor packed = torch::stable::new_empty(weight, {conv3d_packed(args.inputs, args.outputs)});
  args.packed = static_cast<float*>(packed.mutable_data_ptr());
  const int64_t panels = conv3d_panels(args.outputs);
  parallel_rows(pack_conv3d_kernel(), args, panels, conv3d_packed(args.inputs, conv3d_panel));
  return packed;
}

// 3x3x3 taps, no stride. Gives [B, T', H', W', O].
Tensor causal_conv3d_winograd(
    Tensor x, std::optional<Tensor> history, Tensor packed, std::optional<Tensor> bias,
    int64_t outputs, int64_t zero_frames, std::vector<int64_t> padding) {
  CausalConv3d args{};
  args.x = video(x);
  args.zero_frames = zero_frames;
  if (history) {
    args.history = video(*history);
    args.stored = history->size(2);
  }
  args.inputs = x.size(1);
  args.height = x.size(3);
  args.width = x.size(4);
  args.top = padding[0];
  args.left = padding[2];
  args.frames = zero_frames + args.stored + x.size(2) - 2;
  args.rows = padding[0] + args.height + padding[1] - 2;
  args.columns = padding[2] + args.width + padding[3] - 2;
  args.outputs = outputs;
  STD_TORCH_CHECK(
      packed.numel() == conv3d_packed(args.inputs, outputs) &&
          packed.scalar_type() == ScalarType::Float,
      "packed was made of another weight");
  args.packed = floats(packed);
  const std::optional<Tensor> bias32 = bias ? std::optional(as_float(*bias)) : std::nullopt;
  args.bias = bias32 ? floats(*bias32) : nullptr;

  Tensor out = torch::stable::new_empty(
      x, {x.size(0), args.frames, args.rows, args.columns, outputs});
  args.out = static_cast<float*>(out.mutable_data_ptr());
  const int64_t tiles = x.size(0) * args.pairs() * args.tile_rows() * args.tile_columns();
  parallel_rows(causal_conv3d_kernel(), args, tiles, 64 * args.inputs);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("causal_conv3d_pack(Tensor weight) -> Tensor");
  m.def(
      "causal_conv3d_winograd(Tensor x, Tensor? history, Tensor packed, Tensor? bias, int outputs,"
      " int zero_frames, int[] padding) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("causal_conv3d_pack", TORCH_BOX(&causal_conv3d_pack));
  m.impl("causal_conv3d_winograd", TORCH_BOX(&causal_conv3d_winograd));
}

}  // namespace livetalk
