#include "bindings/rows.h"
#include "cpu/merge_lse.h"

namespace livetalk {
namespace {

std::tuple<Tensor, Tensor> merge_lse_cpu(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) {
  check_dtype(out_a);
  STD_TORCH_CHECK(out_a.dim() == 4, "out_a must be [B, L, H, d]");
  const int64_t batch = out_a.size(0), tokens = out_a.size(1), heads = out_a.size(2),
                size = out_a.size(3);
  STD_TORCH_CHECK(
      lse_a.numel() == batch * heads * tokens && lse_a.scalar_type() == ScalarType::Float,
      "lse_a must be [B, H, L] in float32");
  const Tensor a = packed(out_a), b = like(out_b, out_a, "out_b");
  const Tensor log_a = packed(lse_a), log_b = like(lse_b, lse_a, "lse_b");
  Tensor out = torch::stable::empty_like(a), lse = torch::stable::empty_like(log_a);
  const MergeLse args{
      a.const_data_ptr(),
      floats(log_a),
      b.const_data_ptr(),
      floats(log_b),
      out.mutable_data_ptr(),
      static_cast<float*>(lse.mutable_data_ptr()),
      tokens,
      heads,
      size,
      is_half(a),
      streams(out, size)};
  const int64_t blocks = (tokens + merge_lse_block - 1) / merge_lse_block;
  parallel_rows(merge_lse_kernel(), args, batch * blocks, merge_lse_block * heads * size);
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "merge_lse_cpu(Tensor out_a_BLHd, Tensor lse_a_BHL, Tensor out_b_BLHd, Tensor lse_b_BHL)"
      " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) { m.impl("merge_lse_cpu", TORCH_BOX(&merge_lse_cpu)); }

}  // namespace livetalk
