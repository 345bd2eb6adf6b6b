#include "bindings/rows.h"
#include "cpu/rms_norm.h"

namespace livetalk {
namespace {

Tensor rms_norm_cpu(Tensor x, Tensor weight, double eps) {
  check_dtype(x);
  const Rows rows = rows_of(x);
  const Tensor weight32 = channels_of(weight, rows.width, "weight");
  Tensor out = torch::stable::new_empty(x, x.sizes());
  const RmsNorm args{
      rows.data(),
      floats(weight32),
      out.mutable_data_ptr(),
      rows.stride,
      rows.width,
      static_cast<float>(eps),
      is_half(x),
      streams(out, rows.width)};
  parallel_rows(rms_norm_kernel(), args, rows.width ? rows.count : 0, rows.width);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("rms_norm_cpu(Tensor x, Tensor weight, *, float eps=1e-6) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) { m.impl("rms_norm_cpu", TORCH_BOX(&rms_norm_cpu)); }

}  // namespace livetalk
