// The compiled parts of causal_conv3d's cpu backend; ops/causal_conv3d/cpu.py decides when they
// run.
#include "cpu/causal_conv3d.h"

#include <string>

#include "bindings/cpu.h"

namespace livetalk {
namespace {

constexpr int64_t least_pixels = 64;  // minimum per thread of the direct kernel
constexpr int64_t least_rows = 4;     // minimum per thread of the one in tiles

int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

void check_dtype(const Tensor& x, const Tensor& packed) {
  STD_TORCH_CHECK(
      x.scalar_type() == packed.scalar_type() &&
          (x.scalar_type() == ScalarType::Float || is_half(x)),
      "frames and weight must be float32 or bfloat16, both the same");
}

Video video(const Tensor& x) {
  STD_TORCH_CHECK(x.size(1) == 1 || x.stride(1) == 1, "channels must be innermost in memory");
  return {x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3), x.stride(4)};
}

// weight [O, I, t, h, w] in any memory format, fp32 or bf16 -> the form that causal_conv3d_packed
// takes, with the same dtype.
Tensor causal_conv3d_pack(Tensor weight) {
  check_dtype(weight, weight);
  PackConv3d args{};
  args.weight = weight.const_data_ptr();
  args.half = is_half(weight);
  for (int64_t dim = 0; dim < 5; ++dim) args.stride[dim] = weight.stride(dim);
  for (int64_t dim = 0; dim < 3; ++dim) args.taps[dim] = weight.size(dim + 2);
  args.outputs = weight.size(0);
  args.inputs = weight.size(1);
  Tensor packed = torch::stable::new_empty(weight, {args.size()});
  args.packed = packed.mutable_data_ptr();
  parallel_rows(pack_conv3d_kernel(), args, conv3d_panels(args.outputs), args.panel_size());
  return packed;
}

// Taps on nonzero frames, summed over the output frames of one video.
int64_t real_taps(const CausalConv3d& args) {
  int64_t taps = 0;
  for (int64_t frame = 0; frame < args.frames; ++frame) {
    taps += args.taps[0] - std::max<int64_t>(0, args.zero_frames - frame * args.stride[0]);
  }
  return taps * args.taps[1] * args.taps[2];
}

bool fits_winograd(const CausalConv3d& args) {
  for (int64_t dim = 0; dim < 3; ++dim) {
    const bool one = dim == 0 && args.taps[dim] == 1;
    if ((args.taps[dim] != 3 && !one) || args.stride[dim] != 1) return false;
  }
  return true;
}

// Whether Winograd's algorithm is expected to be faster. Costs are in products per pair of an input
// and an output channel; those of transforms were measured in this unit, on a Zen 5 and a Xeon.
bool prefers_winograd(const CausalConv3d& args) {
  if (!fits_winograd(args)) return false;
  constexpr double weights = 600;             // transforming a weight to the positions of one time
  constexpr double inputs = 15, outputs = 8;  // transforming a tile, per product with it
  constexpr int64_t group = 7;                // tiles of a product, in AVX-512's kernel
  constexpr int64_t square = (conv3d_tile + 2) * (conv3d_tile + 2);  // positions of rows and columns
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = parts_of(args.batch * args.tile_rows() * args.tile_columns(), group);
  const int64_t slabs = std::max(threads, parts_of(groups * args.pairs() * group, conv3d_most_tiles));
  const double tiles = static_cast<double>(groups * group);
  const int64_t times = args.flat() ? args.frames : args.frames / 2 * 4 + args.frames % 2 * 3;
  const double positions = static_cast<double>(square * times);
  const double spread = weights * static_cast<double>(slabs * args.times(0));
  const double slow = 1 + inputs / static_cast<double>(args.outputs) +
                      outputs / static_cast<double>(args.inputs);
  // Pairs of bf16 are multiplied twice as fast as fp32.
  const double rate = args.half && current_isa() == Isa::avx512_bf16 ? 2 : 1;
  const double direct = static_cast<double>(args.batch * real_taps(args) * args.rows * args.columns);
  return tiles * positions * slow + spread < direct / rate;
}

void run_direct(const CausalConv3d& conv) {
  const int64_t threads = torch::stable::get_num_threads(), pixels = conv.pixels();
  const int64_t parts = parts_of(threads * least_pixels, pixels);
  const DirectConv3d args{conv, std::min(parts, conv.panels())};
  parallel_rows(
      conv3d_direct_kernel(), args, args.parts * pixels,
      conv.all_taps() * conv.inputs * parts_of(conv.panels(), args.parts));
}

void run_tiles(const CausalConv3d& conv) {
  const int64_t threads = torch::stable::get_num_threads(), rows = conv.batch * conv.rows;
  const int64_t parts = std::min(parts_of(threads * least_rows, rows), conv.panels());
  const DirectConv3d args{conv, parts};
  parallel_rows(
      conv3d_tiles_kernel(), args, parts * rows,
      conv.frames * conv.columns * conv.all_taps() * conv.inputs * parts_of(conv.panels(), parts));
}

std::string best_method(const CausalConv3d& args) {
  if (args.half && uses_tiles()) return "tiles";
  return prefers_winograd(args) ? "winograd" : "direct";
}

// Returns [B, T', H', W', O] in x's dtype. `method` is winograd, direct, tiles (bf16 only), or
// best for the one that should be faster.
Tensor causal_conv3d_packed(
    Tensor x, std::optional<Tensor> history, Tensor packed, std::optional<Tensor> bias,
    int64_t outputs, std::vector<int64_t> taps, int64_t zero_frames, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::string method) {
  check_dtype(x, packed);
  CausalConv3d args{};
  args.x = video(x);
  args.half = is_half(x);
  args.zero_frames = zero_frames;
  if (history) {
    STD_TORCH_CHECK(history->scalar_type() == x.scalar_type(), "history must be of x's dtype");
    args.history = video(*history);
    args.stored = history->size(2);
  }
  args.batch = x.size(0);
  args.inputs = x.size(1);
  args.height = x.size(3);
  args.width = x.size(4);
  args.top = padding[0];
  args.left = padding[2];
  const int64_t sizes[] = {
      zero_frames + args.stored + x.size(2), padding[0] + args.height + padding[1],
      padding[2] + args.width + padding[3]};
  int64_t results[3];
  for (int64_t dim = 0; dim < 3; ++dim) {
    args.taps[dim] = taps[dim];
    args.stride[dim] = stride[dim];
    results[dim] = (sizes[dim] - taps[dim]) / stride[dim] + 1;
    STD_TORCH_CHECK(sizes[dim] >= taps[dim], "fewer frames, rows or columns than taps");
  }
  STD_TORCH_CHECK(zero_frames < taps[0], "zero frames that no output needs");
  args.frames = results[0];
  args.rows = results[1];
  args.columns = results[2];
  args.outputs = outputs;
  STD_TORCH_CHECK(
      packed.numel() == args.all_taps() * args.chunks() * conv3d_lanes * args.panels() * conv3d_panel,
      "packed was made of another weight");
  args.packed = packed.const_data_ptr();
  const std::optional<Tensor> bias32 = bias ? std::optional(as_float(*bias)) : std::nullopt;
  args.bias = bias32 ? floats(*bias32) : nullptr;

  Tensor out = torch::stable::new_empty(
      x, {x.size(0), args.frames, args.rows, args.columns, outputs});
  if (!out.numel()) return out;
  args.out = out.mutable_data_ptr();
  STD_TORCH_CHECK(
      method == "best" || method == "direct" || (method == "winograd" && fits_winograd(args)) ||
          (method == "tiles" && args.half),
      "no method ", method, " for this convolution");
  if (method == "best") method = best_method(args);
  if (method == "winograd") {
    parallel_rows(conv3d_winograd_kernel(), args, args.tiles(), 64 * args.inputs);
  } else if (method == "tiles") {
    run_tiles(args);
  } else {
    run_direct(args);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("causal_conv3d_pack(Tensor weight) -> Tensor");
  m.def(
      "causal_conv3d_packed(Tensor x, Tensor? history, Tensor packed, Tensor? bias, int outputs,"
      " int[] taps, int zero_frames, int[] stride, int[] padding, str method) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("causal_conv3d_pack", TORCH_BOX(&causal_conv3d_pack));
  m.impl("causal_conv3d_packed", TORCH_BOX(&causal_conv3d_packed));
}

}  // namespace livetalk
