#include "bindings/rows.h"
#include "cpu/rms_norm_silu.h"

namespace livetalk {
namespace {

// Whether the elements fill their memory without gaps, in some order of the dimensions.
bool is_dense(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    if (x.size(dim) != 1) dims.emplace_back(x.stride(dim), x.size(dim));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

Tensor rms_norm_silu_cpu(Tensor x, Tensor gamma, std::optional<Tensor> bias) {
  check_dtype(x);
  STD_TORCH_CHECK(x.dim() >= 2, "x must be [B, C, ...]");
  const int64_t channels = x.size(1);
  const Tensor gamma32 = channels_of(gamma, channels, "gamma");
  std::optional<Tensor> bias32;
  if (bias) bias32 = channels_of(*bias, channels, "bias");
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  Tensor dense = x;
  if (!is_dense(x)) {
    dense = torch::stable::empty_like(x);
    torch::stable::copy_(dense, x);
  }
  // All dimensions within the channels' stride belong to one channel.
  const int64_t inner = channels == 1 ? 1 : dense.stride(1);
  const int64_t outer = x.numel() / (channels * inner);
  const RmsNormSilu args{
      dense.const_data_ptr(), floats(gamma32), bias32 ? floats(*bias32) : nullptr,
      out.mutable_data_ptr(), outer,           channels,
      inner,                  is_half(x),      streams(out, channels)};
  const int64_t block = inner == 1 ? rms_norm_silu_block : rms_norm_silu_planar_block;
  const int64_t blocks =
      inner == 1 ? (outer + block - 1) / block : outer * ((inner + block - 1) / block);
  parallel_rows(rms_norm_silu_kernel(), args, blocks, block * channels);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("rms_norm_silu_cpu(Tensor x, Tensor gamma, Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("rms_norm_silu_cpu", TORCH_BOX(&rms_norm_silu_cpu));
}

}  // namespace livetalk
