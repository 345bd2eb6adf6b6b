#include "bindings/rows.h"
#include "cpu/add_norm.h"

namespace livetalk {
namespace {

// Inputs of add_norm and add_norm_quant, in the form their kernels expect.
struct Inputs {
  Tensor x, y, weight, bias;
  std::optional<Tensor> gate;
  int64_t rows, width;

  Inputs(
      const Tensor& x_in, const Tensor& y_in, const std::optional<Tensor>& gate_in,
      const Tensor& weight_in, const Tensor& bias_in)
      : x(packed(x_in)), y(like(y_in, x_in, "y")) {
    check_dtype(x);
    width = x.size(x.dim() - 1);
    rows = width ? x.numel() / width : 0;
    weight = channels_of(weight_in, width, "weight");
    bias = channels_of(bias_in, width, "bias");
    if (gate_in) gate = channels_of(*gate_in, width, "gate");
  }

  AddNorm arguments(Tensor& x_new, double eps) const {
    return {x.const_data_ptr(),
            y.const_data_ptr(),
            gate ? floats(*gate) : nullptr,
            floats(weight),
            floats(bias),
            x_new.mutable_data_ptr(),
            nullptr,
            width,
            static_cast<float>(eps),
            is_half(x),
            streams(x_new, width)};
  }
};

std::tuple<Tensor, Tensor> add_norm_cpu(
    Tensor x, Tensor y, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps) {
  const Inputs inputs(x, y, gate, weight, bias);
  Tensor x_new = torch::stable::empty_like(inputs.x), h = torch::stable::empty_like(inputs.x);
  AddNorm args = inputs.arguments(x_new, eps);
  args.h = h.mutable_data_ptr();
  args.stream = args.stream && streams(h, inputs.width);
  parallel_rows(add_norm_kernel(), args, inputs.rows, inputs.width);
  return {x_new, h};
}

std::tuple<Tensor, Tensor, Tensor> add_norm_quant_cpu(
    Tensor x, Tensor y, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps) {
  const Inputs inputs(x, y, gate, weight, bias);
  Tensor x_new = torch::stable::empty_like(inputs.x);
  Tensor q = torch::stable::new_empty(inputs.x, inputs.x.sizes(), ScalarType::Float8_e4m3fn);
  const auto sizes = inputs.x.sizes();
  std::vector<int64_t> scales(sizes.begin(), sizes.end());
  scales.back() = 1;
  Tensor scale = torch::stable::new_empty(inputs.x, scales, ScalarType::Float);
  const AddNormQuant args{
      inputs.arguments(x_new, eps), static_cast<uint8_t*>(q.mutable_data_ptr()),
      static_cast<float*>(scale.mutable_data_ptr())};
  parallel_rows(add_norm_quant_kernel(), args, inputs.rows, inputs.width);
  return {x_new, q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "add_norm_cpu(Tensor x, Tensor y, Tensor? gate, Tensor weight, Tensor bias, *, float eps=1e-6)"
      " -> (Tensor, Tensor)");
  m.def(
      "add_norm_quant_cpu(Tensor x, Tensor y, Tensor? gate, Tensor weight, Tensor bias, *,"
      " float eps=1e-6) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("add_norm_cpu", TORCH_BOX(&add_norm_cpu));
  m.impl("add_norm_quant_cpu", TORCH_BOX(&add_norm_quant_cpu));
}

}  // namespace livetalk
