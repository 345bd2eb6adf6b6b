#include <string>

#include "bindings/rows.h"
#include "cpu/rms_norm_rope.h"

namespace livetalk {
namespace {

// [batch, tokens, width] with a contiguous last dimension; copied if necessary.
Tensor with_rows(const Tensor& x) {
  return x.size(2) <= 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

std::tuple<Tensor, Tensor> rms_norm_rope_cpu(
    Tensor q, Tensor k, Tensor weight_q, Tensor weight_k, Tensor cos, Tensor sin, int64_t num_heads,
    double eps, int64_t row_offset, std::string layout) {
  check_dtype(q);
  STD_TORCH_CHECK(q.dim() == 3 && k.dim() == 3, "q and k must be [B, L, D]");
  const int64_t batch = q.size(0), tokens = q.size(1), width = q.size(2);
  STD_TORCH_CHECK(
      k.size(0) == batch && k.size(1) == tokens && k.size(2) == width &&
          k.scalar_type() == q.scalar_type(),
      "q and k differ in shape or dtype");
  STD_TORCH_CHECK(
      num_heads > 0 && width % (2 * num_heads) == 0, num_heads, " heads of an even size do not fit ",
      width, " channels");
  const int64_t size = width / num_heads;
  for (const Tensor& table : {cos, sin}) {
    STD_TORCH_CHECK(
        table.dim() == 2 && table.size(1) == size / 2 && row_offset >= 0 &&
            row_offset + tokens <= table.size(0),
        "the RoPE table ends before the tokens do");
  }
  STD_TORCH_CHECK(layout == "token" || layout == "head", "no layout ", layout);
  const Tensor q_rows = with_rows(q), k_rows = with_rows(k);
  const Tensor weight_q32 = channels_of(weight_q, width, "weight_q");
  const Tensor weight_k32 = channels_of(weight_k, width, "weight_k");
  const Tensor cos32 = packed_floats(cos), sin32 = packed_floats(sin);
  const bool by_token = layout == "token";
  const std::vector<int64_t> shape = by_token
                                         ? std::vector<int64_t>{batch, tokens, num_heads, size}
                                         : std::vector<int64_t>{num_heads, batch, tokens, size};
  Tensor q_out = torch::stable::new_empty(q, shape), k_out = torch::stable::new_empty(q, shape);
  const RmsNormRope args{
      {q_rows.const_data_ptr(), q_rows.stride(0), q_rows.stride(1), floats(weight_q32),
       q_out.mutable_data_ptr()},
      {k_rows.const_data_ptr(), k_rows.stride(0), k_rows.stride(1), floats(weight_k32),
       k_out.mutable_data_ptr()},
      floats(cos32),
      floats(sin32),
      tokens,
      num_heads,
      size,
      row_offset,
      by_token ? width : size,
      by_token ? size : batch * tokens * size,
      static_cast<float>(eps),
      is_half(q),
      streams(q_out, size) && streams(k_out, size)};
  parallel_rows(rms_norm_rope_kernel(), args, width ? batch * tokens : 0, 2 * width);
  return {q_out, k_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "rms_norm_rope_cpu(Tensor q_BLD, Tensor k_BLD, Tensor weight_q_D, Tensor weight_k_D,"
      " Tensor cos_Sc, Tensor sin_Sc, *, int num_heads, float eps=1e-6, int row_offset=0,"
      " str layout=\"token\") -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("rms_norm_rope_cpu", TORCH_BOX(&rms_norm_rope_cpu));
}

}  // namespace livetalk
