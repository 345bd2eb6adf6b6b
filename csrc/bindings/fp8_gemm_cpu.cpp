#include "bindings/rows.h"
#include "cpu/fp8_gemm.h"

namespace livetalk {
namespace {

// Rows of a multiplied at a time, which bounds its widened form and a group's sums.
constexpr int64_t most_rows = 1024;

// A call's operands, checked and contiguous.
struct Operands {
  Tensor a, b, scale_a, scale_b;
  std::optional<Tensor> bias;
  int64_t rows, columns, depth, blocks;

  Operands(
      const Tensor& a_in, const Tensor& b_in, const Tensor& scale_a_in, const Tensor& scale_b_in,
      const std::optional<Tensor>& bias_in)
      : a(packed(a_in)),
        b(packed(b_in)),
        scale_a(packed_floats(scale_a_in)),
        scale_b(packed_floats(scale_b_in)) {
    STD_TORCH_CHECK(
        a.scalar_type() == ScalarType::Float8_e4m3fn && b.scalar_type() == a.scalar_type(),
        "a and b must be float8_e4m3fn");
    rows = a.size(0);
    columns = b.size(0);
    depth = a.size(1);
    STD_TORCH_CHECK(b.size(1) == depth, "a and b differ in K");
    blocks = scale_a.size(1);
    STD_TORCH_CHECK(
        scale_a.size(0) == rows && (blocks == 1 || blocks * fp8_block == depth),
        "scale_a has another shape than [M, 1] or [M, K/128]");
    STD_TORCH_CHECK(scale_b.numel() == columns, "scale_b has another shape than [N, 1]");
    if (bias_in) bias = channels_of(*bias_in, columns, "bias");
  }

  Fp8Gemm arguments() const {
    Fp8Gemm args{};
    args.a = static_cast<const uint8_t*>(a.const_data_ptr());
    args.b = static_cast<const uint8_t*>(b.const_data_ptr());
    args.scale_a = floats(scale_a);
    args.scale_b = floats(scale_b);
    args.bias = bias ? floats(*bias) : nullptr;
    args.columns = columns;
    args.depth = depth;
    args.blocks = blocks;
    return args;
  }

  void run(Fp8Gemm& args) const {
    if (!rows || !columns) return;
    const int64_t pieces = (rows + most_rows - 1) / most_rows;
    const int64_t piece = (rows + pieces - 1) / pieces;
    Tensor memory = torch::stable::new_empty(a, {fp8_widened(piece, depth)}, ScalarType::Byte);
    args.widened = memory.mutable_data_ptr();
    for (args.first = 0; args.first < rows; args.first += piece) {
      args.count = std::min(piece, rows - args.first);
      const int64_t groups = (args.count + fp8_rows - 1) / fp8_rows;
      parallel_rows(widen_fp8_kernel(), args, groups, fp8_rows * depth);
      const int64_t wide = (columns + fp8_columns - 1) / fp8_columns;
      parallel_rows(fp8_gemm_kernel(), args, wide, fp8_columns * (args.count + depth));
    }
  }
};

Tensor fp8_gemm_cpu(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias,
    ScalarType out_dtype) {
  STD_TORCH_CHECK(
      out_dtype == ScalarType::Float || out_dtype == ScalarType::BFloat16,
      "out_dtype must be float32 or bfloat16");
  const Operands operands(a, b, scale_a, scale_b, bias);
  Tensor out = torch::stable::new_empty(a, {operands.rows, operands.columns}, out_dtype);
  Fp8Gemm args = operands.arguments();
  args.out = out.mutable_data_ptr();
  args.half = is_half(out);
  operands.run(args);
  return out;
}

std::tuple<Tensor, Tensor> fp8_gemm_gelu_quant_cpu(
    Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, std::optional<Tensor> bias) {
  const Operands operands(a, b, scale_a, scale_b, bias);
  STD_TORCH_CHECK(operands.columns % fp8_columns == 0, "128 does not divide N");
  Tensor q = torch::stable::new_empty(a, {operands.rows, operands.columns});
  Tensor scale = torch::stable::new_empty(
      a, {operands.rows, operands.columns / fp8_columns}, ScalarType::Float);
  Fp8Gemm args = operands.arguments();
  args.q = static_cast<uint8_t*>(q.mutable_data_ptr());
  args.scale = static_cast<float*>(scale.mutable_data_ptr());
  operands.run(args);
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "fp8_gemm_cpu(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b, Tensor? bias_N, *,"
      " ScalarType out_dtype=bfloat16) -> Tensor");
  m.def(
      "fp8_gemm_gelu_quant_cpu(Tensor a_MK, Tensor b_NK, Tensor scale_a, Tensor scale_b,"
      " Tensor? bias_N) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("fp8_gemm_cpu", TORCH_BOX(&fp8_gemm_cpu));
  m.impl("fp8_gemm_gelu_quant_cpu", TORCH_BOX(&fp8_gemm_gelu_quant_cpu));
}

}  // namespace livetalk
