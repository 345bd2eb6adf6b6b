#include "bindings/rows.h"
#include "cpu/quantize.h"

namespace livetalk {
namespace {

std::tuple<Tensor, Tensor> quantize_cpu(Tensor x, std::optional<int64_t> block) {
  check_dtype(x);
  const Rows rows = rows_of(x);
  const int64_t length = block.value_or(std::max<int64_t>(rows.width, 1));
  STD_TORCH_CHECK(
      length > 0 && (!block || rows.width % length == 0), "blocks of ", length,
      " do not divide a row of ", rows.width);
  Tensor q = torch::stable::new_empty(x, x.sizes(), ScalarType::Float8_e4m3fn);
  const auto sizes = x.sizes();
  std::vector<int64_t> scales(sizes.begin(), sizes.end());
  scales.back() = block ? rows.width / length : 1;
  Tensor scale = torch::stable::new_empty(x, scales, ScalarType::Float);
  if (rows.width == 0) {  // the peak of no values is zero
    torch::stable::fill_(scale, 1.0);
    return {q, scale};
  }
  const Quantize args{
      rows.data(),
      static_cast<uint8_t*>(q.mutable_data_ptr()),
      static_cast<float*>(scale.mutable_data_ptr()),
      rows.stride,
      rows.width,
      length,
      is_half(x)};
  parallel_rows(quantize_kernel(), args, rows.count, rows.width);
  return {q, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def("quantize_cpu(Tensor x, *, int? block=None) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) { m.impl("quantize_cpu", TORCH_BOX(&quantize_cpu)); }

}  // namespace livetalk
