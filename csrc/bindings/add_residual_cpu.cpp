#include "bindings/rows.h"
#include "cpu/add_residual.h"

namespace livetalk {
namespace {

// [B, C, T, H, W] <-> [B, T, H, W, C], as views.
Tensor channels_last(Tensor x) {
  for (int64_t dim = 1; dim < 4; ++dim) x = torch::stable::transpose(x, dim, dim + 1);
  return x;
}

Tensor channels_second(Tensor x) {
  for (int64_t dim = 3; dim > 0; --dim) x = torch::stable::transpose(x, dim, dim + 1);
  return x;
}

Tensor add_residual_cpu(Tensor x, Tensor y, Tensor bias) {
  check_dtype(x);
  STD_TORCH_CHECK(x.dim() == 5 && y.dim() == 5, "x and y must be [B, C, T, H, W]");
  bool alike = x.scalar_type() == y.scalar_type();
  for (int64_t dim = 0; dim < 5; ++dim) alike = alike && x.size(dim) == y.size(dim);
  STD_TORCH_CHECK(alike, "y differs in shape or dtype");
  const Tensor pixels = channels_last(x);
  const Rows a = rows_of(pixels), b = rows_of(channels_last(y));
  const Tensor bias32 = channels_of(bias, a.width, "bias");
  Tensor out = torch::stable::new_empty(pixels, pixels.sizes());
  const AddResidual args{
      a.data(), b.data(), floats(bias32), out.mutable_data_ptr(),  a.stride,
      b.stride, a.width,  is_half(x),     streams(out, a.width)};
  parallel_rows(add_residual_kernel(), args, a.width ? a.count : 0, a.width);
  return channels_second(out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("add_residual_cpu(Tensor x, Tensor y, Tensor bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("add_residual_cpu", TORCH_BOX(&add_residual_cpu));
}

}  // namespace livetalk
