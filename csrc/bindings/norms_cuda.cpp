// Torch operators of csrc/cuda: add_norm, rms_norm, rms_norm_rope, rms_norm_silu.
//
// The Python side (ops/<op>/cuda.py) has checked dtypes, and that widths are whole packs of 16
// bytes; what depends on a call's own tensors is checked here.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>

#include "cuda/args.h"

namespace livetalk::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

bool is_half(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16; }

Channels channels_of(const Tensor& vector) {
  STD_TORCH_CHECK(
      vector.is_contiguous() && (is_half(vector) || vector.scalar_type() == ScalarType::Float),
      "channel vectors are contiguous, in float32 or bfloat16");
  return {vector.const_data_ptr(), is_half(vector)};
}

void check(bool launched, int64_t width) {
  STD_TORCH_CHECK(launched, "a row of ", width, " is too wide for this kernel");
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> add_norm_cuda(
    Tensor x, Tensor y, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps) {
  STD_TORCH_CHECK(x.is_contiguous() && y.is_contiguous(), "add_norm: x and y are contiguous");
  const DeviceGuard guard(x.get_device_index());
  Tensor x_new = torch::stable::empty_like(x), h = torch::stable::empty_like(x);
  if (x.numel() == 0) return {x_new, h};
  const int64_t width = x.size(x.dim() - 1);
  const AddNorm args{
      x.const_data_ptr(), y.const_data_ptr(),
      gate ? channels_of(*gate) : Channels{nullptr, false}, channels_of(weight), channels_of(bias),
      x_new.mutable_data_ptr(), h.mutable_data_ptr(),
      static_cast<int>(width), static_cast<float>(eps)};
  check(add_norm(args, x.numel() / width, is_half(x), stream_of(x)), width);
  return {x_new, h};
}

// Rows [.., width] of one distance from each other: that distance. Several batch entries may have
// another one between them; `batch_stride` is that.
void strides_of(const Tensor& x, int64_t& stride, int64_t& batch_stride) {
  const int64_t dims = x.dim();
  STD_TORCH_CHECK(x.stride(dims - 1) == 1 || x.size(dims - 1) == 1, "strided channels");
  // The stride of a dimension of one has no meaning.
  stride = dims > 1 && x.size(dims - 2) > 1 ? x.stride(dims - 2) : 0;
  batch_stride = dims > 2 && x.size(dims - 3) > 1 ? x.stride(dims - 3) : 0;
  const int64_t values = x.element_size() == 2 ? 8 : 4;
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  STD_TORCH_CHECK(
      stride % values == 0 && batch_stride % values == 0 && address % 16 == 0,
      "rows start at multiples of 16 bytes");
}

Tensor rms_norm_cuda(Tensor x, Tensor weight, double eps) {
  const DeviceGuard guard(x.get_device_index());
  if (x.dim() > 3) x = torch::stable::contiguous(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (x.numel() == 0) return out;
  const int64_t dims = x.dim(), width = x.size(dims - 1);
  RmsNormRope args{};
  args.x[0] = x.const_data_ptr();
  args.weight[0] = channels_of(weight);
  args.out[0] = out.mutable_data_ptr();
  strides_of(x, args.stride[0], args.batch_stride[0]);
  args.rows = dims == 3 ? x.size(1) : x.numel() / width;
  if (dims > 3) args.stride[0] = width;
  args.width = static_cast<int>(width);
  args.head = static_cast<int>(width);
  args.eps = static_cast<float>(eps);
  check(rms_norm_rope(args, x.numel() / width, 1, is_half(x), stream_of(x)), width);
  return out;
}

std::tuple<Tensor, Tensor> rms_norm_rope_cuda(
    Tensor q, Tensor k, Tensor weight_q, Tensor weight_k, Tensor cosine, Tensor sine,
    int64_t num_heads, double eps, int64_t row_offset, std::string layout) {
  const DeviceGuard guard(q.get_device_index());
  const int64_t batch = q.size(0), tokens = q.size(1), width = q.size(2), head = width / num_heads;
  const bool head_major = layout == "head";
  STD_TORCH_CHECK(head_major || layout == "token", "layout is token or head, not ", layout);
  STD_TORCH_CHECK(
      row_offset >= 0 && row_offset + tokens <= cosine.size(0),
      "the RoPE table ends before the tokens do");
  STD_TORCH_CHECK(
      cosine.scalar_type() == ScalarType::Float && cosine.is_contiguous() &&
          sine.scalar_type() == ScalarType::Float && sine.is_contiguous(),
      "RoPE tables are float32 and contiguous");
  const auto empty = [&] {
    return head_major ? torch::stable::new_empty(q, {num_heads, batch, tokens, head})
                      : torch::stable::new_empty(q, {batch, tokens, num_heads, head});
  };
  Tensor out_q = empty(), out_k = empty();
  if (q.numel() == 0) return {out_q, out_k};
  RmsNormRope args{};
  args.x[0] = q.const_data_ptr(), args.x[1] = k.const_data_ptr();
  args.weight[0] = channels_of(weight_q), args.weight[1] = channels_of(weight_k);
  args.out[0] = out_q.mutable_data_ptr(), args.out[1] = out_k.mutable_data_ptr();
  strides_of(q, args.stride[0], args.batch_stride[0]);
  strides_of(k, args.stride[1], args.batch_stride[1]);
  args.cosine = static_cast<const float*>(cosine.const_data_ptr());
  args.sine = static_cast<const float*>(sine.const_data_ptr());
  args.rows = tokens;
  args.row_offset = row_offset;
  args.width = static_cast<int>(width);
  args.head = static_cast<int>(head);
  args.head_major = head_major;
  args.eps = static_cast<float>(eps);
  check(rms_norm_rope(args, batch * tokens, 2, is_half(q), stream_of(q)), width);
  return {out_q, out_k};
}

// x [pixels, channels], contiguous.
Tensor rms_norm_silu_cuda_rows(Tensor x, Tensor gamma) {
  STD_TORCH_CHECK(x.is_contiguous() && x.dim() == 2, "rms_norm_silu: rows of channels");
  const DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  const RmsNormSilu args{
      x.const_data_ptr(), channels_of(gamma), out.mutable_data_ptr(), x.size(0),
      static_cast<int>(x.size(1))};
  check(rms_norm_silu(args, is_half(x), stream_of(x)), x.size(1));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "add_norm_cuda(Tensor x, Tensor y, Tensor? gate, Tensor weight, Tensor bias, *,"
      " float eps=1e-6) -> (Tensor, Tensor)");
  m.def("rms_norm_cuda(Tensor x, Tensor weight, *, float eps=1e-6) -> Tensor");
  m.def(
      "rms_norm_rope_cuda(Tensor q_BLD, Tensor k_BLD, Tensor weight_q_D, Tensor weight_k_D,"
      " Tensor cos_Sc, Tensor sin_Sc, *, int num_heads, float eps=1e-6, int row_offset=0,"
      " str layout=\"token\") -> (Tensor, Tensor)");
  m.def("rms_norm_silu_cuda_rows(Tensor x, Tensor gamma) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CUDA, m) {
  m.impl("add_norm_cuda", TORCH_BOX(&add_norm_cuda));
  m.impl("rms_norm_cuda", TORCH_BOX(&rms_norm_cuda));
  m.impl("rms_norm_rope_cuda", TORCH_BOX(&rms_norm_rope_cuda));
  m.impl("rms_norm_silu_cuda_rows", TORCH_BOX(&rms_norm_silu_cuda_rows));
}

}  // namespace livetalk::cuda
