// Torch operators of csrc/cuda/sm90: fp8_gemm and fp8_gemm_gelu_quant on CUTLASS.
//
// The Python side (ops/<op>/cutlass.py) has checked the GPU and the sizes as far as it knew them;
// what could make a kernel read beyond a tensor is checked here.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <limits>
#include <optional>
#include <tuple>

#include "cuda/sm90/fp8_gemm.h"

namespace livetalk::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

constexpr int64_t tma_bytes = 16;  // what rows and addresses must be multiples of

int size_of(const Tensor& x, int64_t dim) {
  STD_TORCH_CHECK(
      x.dim() == 2 && x.size(dim) <= std::numeric_limits<int>::max(), "fp8_gemm: not a matrix");
  return static_cast<int>(x.size(dim));
}

const void* fp8_operand(const Tensor& x) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float8_e4m3fn && x.is_contiguous() &&
          reinterpret_cast<uintptr_t>(x.const_data_ptr()) % tma_bytes == 0,
      "fp8_gemm: a and b are float8_e4m3fn, contiguous, and start at multiples of 16 bytes");
  return x.const_data_ptr();
}

const float* fp32_vector(const Tensor& x, int64_t count, const char* name) {
  STD_TORCH_CHECK(
      x.scalar_type() == ScalarType::Float && x.is_contiguous() && x.numel() == count,
      "fp8_gemm: ", name, " is float32, contiguous, with ", count, " elements");
  return static_cast<const float*>(x.const_data_ptr());
}

Fp8Linear arguments_of(
    const Tensor& a, const Tensor& b, const Tensor& scale_a, const Tensor& scale_b,
    const std::optional<Tensor>& bias) {
  Fp8Linear args{};
  args.rows = size_of(a, 0), args.columns = size_of(b, 0), args.depth = size_of(a, 1);
  STD_TORCH_CHECK(size_of(b, 1) == args.depth, "fp8_gemm: a and b differ in K");
  STD_TORCH_CHECK(
      args.depth > 0 && args.depth % tma_bytes == 0 && args.columns % tma_bytes == 0,
      "fp8_gemm: 16 divides K and N, and K is not 0");
  args.a = fp8_operand(a), args.b = fp8_operand(b);
  const int blocks = size_of(scale_a, 1);
  STD_TORCH_CHECK(
      blocks == 1 || int64_t{blocks} * fp8_block == args.depth,
      "fp8_gemm: scale_a is [M, 1] or [M, K/128]");
  args.scale_a = fp32_vector(scale_a, int64_t{args.rows} * blocks, "scale_a");
  set_scale_strides(args, blocks);
  args.scale_b = fp32_vector(scale_b, args.columns, "scale_b");
  if (bias) {
    args.half_bias = bias->scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK(
        (args.half_bias || bias->scalar_type() == ScalarType::Float) && bias->is_contiguous() &&
            bias->numel() == args.columns,
        "fp8_gemm: bias is float32 or bfloat16, contiguous, [N]");
    args.bias = bias->const_data_ptr();
  }
  return args;
}

Gpu gpu_of(const Tensor& x) {
  Gpu gpu{x.get_device_index(), 0};
  const cudaError_t error =
      cudaDeviceGetAttribute(&gpu.processors, cudaDevAttrMultiProcessorCount, gpu.device);
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
  return gpu;
}

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "fp8_gemm on CUTLASS: ", error);
}

Tensor fp8_gemm_cutlass(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias,
    ScalarType out_dtype) {
  STD_TORCH_CHECK(out_dtype == ScalarType::BFloat16, "fp8_gemm on CUTLASS: out_dtype is bfloat16");
  const DeviceGuard guard(a.get_device_index());
  Fp8Linear args = arguments_of(a, b, scale_a, scale_b, bias);
  Tensor out = torch::stable::new_empty(a, {args.rows, args.columns}, out_dtype);
  if (out.numel() == 0) return out;
  args.out = out.mutable_data_ptr();
  const Gpu gpu = gpu_of(a);
  const bool wide = tile_columns(args.rows, args.columns, gpu.processors) == 192;
  check((wide ? fp8_gemm_128x192 : fp8_gemm_128x128)(args, gpu, stream_of(a)));
  return out;
}

std::tuple<Tensor, Tensor> fp8_gemm_gelu_quant_cutlass(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias) {
  const DeviceGuard guard(a.get_device_index());
  Fp8Linear args = arguments_of(a, b, scale_a, scale_b, bias);
  STD_TORCH_CHECK(args.columns % fp8_block == 0, "fp8_gemm_gelu_quant: 128 divides N");
  Tensor q = torch::stable::new_empty(a, {args.rows, args.columns});
  Tensor scale =
      torch::stable::new_empty(a, {args.rows, args.columns / fp8_block}, ScalarType::Float);
  if (q.numel() == 0) return {q, scale};
  args.out = q.mutable_data_ptr();
  args.out_scale = static_cast<float*>(scale.mutable_data_ptr());
  check(fp8_gemm_gelu_quant(args, gpu_of(a), stream_of(a)));
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "fp8_gemm_cutlass(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b, Tensor? bias_N,"
      " *, ScalarType out_dtype=bfloat16) -> Tensor");
  m.def(
      "fp8_gemm_gelu_quant_cutlass(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b,"
      " Tensor? bias_N) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CUDA, m) {
  m.impl("fp8_gemm_cutlass", TORCH_BOX(&fp8_gemm_cutlass));
  m.impl("fp8_gemm_gelu_quant_cutlass", TORCH_BOX(&fp8_gemm_gelu_quant_cutlass));
}

}  // namespace livetalk::cuda
