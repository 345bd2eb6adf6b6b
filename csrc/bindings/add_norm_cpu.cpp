#include "cpu/add_norm.h"

#include "bindings/cpu.h"

namespace livetalk {
namespace {

std::tuple<Tensor, Tensor> add_norm_cpu(
    Tensor x, Tensor y, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps) {
  Tensor x_new = torch::stable::empty_like(x), h = torch::stable::empty_like(x);
  const int64_t width = x.size(x.dim() - 1), rows = width ? x.numel() / width : 0;
  const Tensor weight32 = as_float(weight), bias32 = as_float(bias);
  const std::optional<Tensor> gate32 = gate ? std::optional(as_float(*gate)) : std::nullopt;
  const AddNorm args{
      x.const_data_ptr(), y.const_data_ptr(),
      gate32 ? floats(*gate32) : nullptr, floats(weight32), floats(bias32),
      x_new.mutable_data_ptr(), h.mutable_data_ptr(),
      width, static_cast<float>(eps), is_half(x)};
  parallel_rows(add_norm_kernel(), args, rows, width);
  return {x_new, h};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "add_norm_cpu(Tensor x, Tensor y, Tensor? gate, Tensor weight, Tensor bias, *, float eps=1e-6)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) { m.impl("add_norm_cpu", TORCH_BOX(&add_norm_cpu)); }

}  // namespace livetalk
