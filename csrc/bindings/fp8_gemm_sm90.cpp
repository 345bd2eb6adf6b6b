// Torch operators of csrc/cuda/sm90: fp8_gemm and fp8_gemm_gelu_quant on CUTLASS.
#include "bindings/cuda.h"
#include "cuda/sm90/fp8_gemm.h"

namespace livetalk::cuda {
namespace {

// Rows or columns of a matrix. `Call::x` is a.
int size_of(const Call& call, const Tensor& matrix, int64_t dim, const char* name) {
  STD_TORCH_CHECK(
      matrix.dim() == 2 && matrix.size(dim) <= max_int, call.op, ": ", name,
      " is not a matrix of at most 2^31 - 1 rows and columns");
  return static_cast<int>(matrix.size(dim));
}

const void* fp8_operand(const Call& call, const Tensor& matrix, const char* name) {
  STD_TORCH_CHECK(
      matrix.scalar_type() == ScalarType::Float8_e4m3fn, call.op, ": ", name,
      " is not float8_e4m3fn");
  call.require_same_device(matrix, name);
  call.require_dense(matrix, name);
  return matrix.const_data_ptr();
}

// Scales [rows, 1] or [rows, depth / 128], with any strides.
void set_scale_a(const Call& call, const Tensor& scale, Fp8Linear& args) {
  call.require_same_device(scale, "scale_a");
  const int64_t blocks = size_of(call, scale, 1, "scale_a");
  STD_TORCH_CHECK(
      is_float(scale) && scale.size(0) == args.rows &&
          (blocks == 1 || blocks * fp8_block == args.depth),
      call.op, ": scale_a is not float32 [M, 1] or [M, K/128]");
  STD_TORCH_CHECK(
      set_scale_strides(args, blocks, scale.stride(0), scale.stride(1)), call.op,
      ": scale_a is spread over more than 2^31 - 1 elements");
  args.scale_a = static_cast<const float*>(scale.const_data_ptr());
}

Fp8Linear arguments_of(
    const Call& call, const Tensor& b, const Tensor& scale_a, const Tensor& scale_b,
    const std::optional<Tensor>& bias) {
  const Tensor& a = call.x;
  Fp8Linear args{};
  args.rows = size_of(call, a, 0, "a"), args.depth = size_of(call, a, 1, "a");
  args.columns = size_of(call, b, 0, "b");
  STD_TORCH_CHECK(size_of(call, b, 1, "b") == args.depth, call.op, ": a and b differ in K");
  STD_TORCH_CHECK(
      args.depth > 0 && args.depth % pack_bytes == 0 && args.columns % pack_bytes == 0, call.op,
      ": needs K and N in multiples of 16, and K not 0");
  args.a = fp8_operand(call, a, "a"), args.b = fp8_operand(call, b, "b");
  set_scale_a(call, scale_a, args);
  call.require_same_device(scale_b, "scale_b");
  STD_TORCH_CHECK(
      is_float(scale_b) && scale_b.is_contiguous() && scale_b.numel() == args.columns, call.op,
      ": scale_b is not float32 [N, 1], contiguous");
  args.scale_b = static_cast<const float*>(scale_b.const_data_ptr());
  if (bias) {
    call.require_same_device(*bias, "bias");
    args.half_bias = is_half(*bias);
    STD_TORCH_CHECK(
        (args.half_bias || is_float(*bias)) && bias->is_contiguous() &&
            bias->numel() == args.columns,
        call.op, ": bias is not float32 or bfloat16 [N], contiguous");
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

void check_launch(const Call& call, const char* error) {
  STD_TORCH_CHECK(error == nullptr, call.op, " on CUTLASS: ", error);
}

Tensor fp8_gemm_cutlass(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias,
    ScalarType out_dtype) {
  const Call call{"fp8_gemm", a};
  Fp8Linear args = arguments_of(call, b, scale_a, scale_b, bias);
  STD_TORCH_CHECK(out_dtype == ScalarType::BFloat16, "fp8_gemm on CUTLASS: out_dtype is bfloat16");
  call.require_gpu();
  const DeviceGuard guard(a.get_device_index());
  Tensor out = torch::stable::new_empty(a, {args.rows, args.columns}, out_dtype);
  if (out.numel() == 0) return out;
  call.require_aligned(out, "the result");
  args.out = out.mutable_data_ptr();
  const Gpu gpu = gpu_of(a);
  const bool wide = tile_columns(args.rows, args.columns, gpu.processors) == 192;
  check_launch(call, (wide ? fp8_gemm_128x192 : fp8_gemm_128x128)(args, gpu, stream_of(a)));
  return out;
}

std::tuple<Tensor, Tensor> fp8_gemm_gelu_quant_cutlass(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias, bool m_major) {
  const Call call{"fp8_gemm_gelu_quant", a};
  Fp8Linear args = arguments_of(call, b, scale_a, scale_b, bias);
  STD_TORCH_CHECK(
      args.columns % fp8_block == 0, "fp8_gemm_gelu_quant: needs N in multiples of 128");
  call.require_gpu();
  const DeviceGuard guard(a.get_device_index());
  Tensor q = torch::stable::new_empty(a, {args.rows, args.columns});
  const int64_t blocks = args.columns / fp8_block;
  const bool transposed = m_major && blocks > 1;
  Tensor scale = torch::stable::new_empty(
      a, {transposed ? blocks : args.rows, transposed ? args.rows : blocks}, ScalarType::Float);
  if (transposed) scale = torch::stable::transpose(scale, 0, 1);
  if (q.numel() == 0) return {q, scale};
  call.require_aligned(q, "the result");
  args.out = q.mutable_data_ptr();
  args.out_scale = static_cast<float*>(scale.mutable_data_ptr());
  args.out_scale_row = scale.stride(0), args.out_scale_step = scale.stride(1);
  check_launch(call, fp8_gemm_gelu_quant(args, gpu_of(a), stream_of(a)));
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "fp8_gemm_cutlass(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b, Tensor? bias_N,"
      " *, ScalarType out_dtype=bfloat16) -> Tensor");
  m.def(
      "fp8_gemm_gelu_quant_cutlass(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b,"
      " Tensor? bias_N, *, bool m_major=False) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CUDA, m) {
  m.impl("fp8_gemm_cutlass", TORCH_BOX(&fp8_gemm_cutlass));
  m.impl("fp8_gemm_gelu_quant_cutlass", TORCH_BOX(&fp8_gemm_gelu_quant_cutlass));
}

}  // namespace livetalk::cuda
