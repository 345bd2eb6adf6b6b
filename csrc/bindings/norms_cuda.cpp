// Torch operators of csrc/cuda: add_norm, rms_norm, rms_norm_rope, rms_norm_silu.
#include "bindings/cuda.h"
#include "cuda/args.h"

namespace livetalk::cuda {
namespace {

Channels channels_of(const Tensor& vector) { return {vector.const_data_ptr(), is_half(vector)}; }

void check_launch(const Call& call, bool launched, int64_t width) {
  STD_TORCH_CHECK(launched, call.op, ": a row of ", width, " is too wide for this kernel");
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, call.op, ": ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> add_norm_cuda(
    Tensor x, Tensor y, std::optional<Tensor> gate, Tensor weight, Tensor bias, double eps) {
  const Call call{"add_norm", x};
  const int64_t width = call.width_of_rows();
  call.require_dense(x, "x");
  call.require_like(y, "y");
  call.require_dense(y, "y");
  if (gate) call.require_channels(*gate, width, "gate");
  call.require_channels(weight, width, "weight");
  call.require_channels(bias, width, "bias");
  call.require_gpu();
  const DeviceGuard guard(x.get_device_index());
  Tensor x_new = torch::stable::empty_like(x), h = torch::stable::empty_like(x);
  if (x.numel() == 0) return {x_new, h};
  call.require_aligned(x_new, "the result"), call.require_aligned(h, "the result");
  const AddNorm args{
      x.const_data_ptr(), y.const_data_ptr(),
      gate ? channels_of(*gate) : Channels{nullptr, false}, channels_of(weight), channels_of(bias),
      x_new.mutable_data_ptr(), h.mutable_data_ptr(),
      static_cast<int>(width), static_cast<float>(eps)};
  check_launch(call, add_norm(args, x.numel() / width, is_half(x), stream_of(x)), width);
  return {x_new, h};
}

// Memory layout of one input of rms_norm_rope.
struct Rows {
  int64_t batch, rows;           // batch entries, and rows per entry
  int64_t stride, batch_stride;  // elements from one to the next
};

// Rows [.., .., width] with contiguous channels, starting at whole packs.
Rows rows_of(const Call& call, const Tensor& x, const char* name) {
  const int64_t dims = x.dim(), width = x.size(dims - 1);
  STD_TORCH_CHECK(
      x.stride(dims - 1) == 1 || width == 1, call.op, ": channels of ", name, " are strided");
  Rows found{1, 1, 0, 0};  // the stride of a dimension of size 1 is meaningless
  if (dims > 1) found.rows = x.size(dims - 2);
  if (dims > 2) found.batch = x.size(dims - 3);
  if (found.rows > 1) found.stride = x.stride(dims - 2);
  if (found.batch > 1) found.batch_stride = x.stride(dims - 3);
  const int64_t values = pack_bytes / x.element_size();
  STD_TORCH_CHECK(
      found.stride % values == 0 && found.batch_stride % values == 0, call.op, ": rows of ", name,
      " are not a multiple of 16 bytes apart");
  call.require_aligned(x, name);
  return found;
}

Tensor rms_norm_cuda(Tensor x, Tensor weight, double eps) {
  const Call call{"rms_norm", x};
  const int64_t width = call.width_of_rows();
  call.require_channels(weight, width, "weight");
  // If two strides don't suffice, or a grid can't hold the batch, make it a single batch entry.
  if (x.dim() > 3 || (x.dim() == 3 && x.size(0) > max_batch)) x = torch::stable::contiguous(x);
  const Rows found = x.is_contiguous() && width > 0 ? Rows{1, x.numel() / width, width, 0}
                                                    : rows_of(call, x, "x");
  call.require_aligned(x, "x");
  call.require_gpu();
  const DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (x.numel() == 0) return out;
  call.require_aligned(out, "the result");
  RmsNormRope args{};
  args.x[0] = x.const_data_ptr();
  args.weight[0] = channels_of(weight);
  args.out[0] = out.mutable_data_ptr();
  args.stride[0] = found.stride, args.batch_stride[0] = found.batch_stride;
  args.rows = static_cast<int>(found.rows);
  args.batch = static_cast<int>(found.batch);
  args.width = static_cast<int>(width);
  args.head = static_cast<int>(width);
  args.eps = static_cast<float>(eps);
  check_launch(call, rms_norm_rope(args, 1, is_half(x), stream_of(x)), width);
  return out;
}

// A table [S, half_head] from which rows [row_offset, row_offset + tokens) are read.
void require_table(
    const Call& call, const Tensor& table, int64_t half_head, int64_t row_offset, int64_t tokens,
    const char* name) {
  call.require_same_device(table, name);
  STD_TORCH_CHECK(
      is_float(table) && table.dim() == 2 && table.size(1) == half_head, call.op, ": ", name,
      " is not float32 [S, ", half_head, "]");
  STD_TORCH_CHECK(
      row_offset >= 0 && row_offset <= table.size(0) - tokens, call.op, ": ", name,
      " ends before the tokens do: ", table.size(0), " rows for ", tokens, " from ", row_offset);
  call.require_dense(table, name);
}

std::tuple<Tensor, Tensor> rms_norm_rope_cuda(
    Tensor q, Tensor k, Tensor weight_q, Tensor weight_k, Tensor cosine, Tensor sine,
    int64_t num_heads, double eps, int64_t row_offset, std::string layout) {
  const Call call{"rms_norm_rope", q};
  const int64_t width = call.width_of_rows();
  STD_TORCH_CHECK(q.dim() == 3, "rms_norm_rope: q is [B, L, D]");
  const int64_t batch = q.size(0), tokens = q.size(1);
  STD_TORCH_CHECK(batch <= max_batch, "rms_norm_rope: more than ", max_batch, " batch entries");
  call.require_like(k, "k");
  STD_TORCH_CHECK(
      num_heads > 0 && width % num_heads == 0, "rms_norm_rope: ", num_heads,
      " heads do not divide ", width, " channels");
  const int64_t head = width / num_heads, values = pack_bytes / q.element_size();
  STD_TORCH_CHECK(
      head % values == 0, "rms_norm_rope: heads of ", head, " channels, not a multiple of ", values);
  const bool head_major = layout == "head";
  STD_TORCH_CHECK(
      head_major || layout == "token", "rms_norm_rope: layout is token or head, not ", layout);
  call.require_channels(weight_q, width, "weight_q");
  call.require_channels(weight_k, width, "weight_k");
  require_table(call, cosine, head / 2, row_offset, tokens, "cos");
  require_table(call, sine, head / 2, row_offset, tokens, "sin");
  const Rows rows_q = rows_of(call, q, "q"), rows_k = rows_of(call, k, "k");
  call.require_gpu();
  const DeviceGuard guard(q.get_device_index());
  const auto empty = [&] {
    return head_major ? torch::stable::new_empty(q, {num_heads, batch, tokens, head})
                      : torch::stable::new_empty(q, {batch, tokens, num_heads, head});
  };
  Tensor out_q = empty(), out_k = empty();
  if (q.numel() == 0) return {out_q, out_k};
  call.require_aligned(out_q, "the result"), call.require_aligned(out_k, "the result");
  RmsNormRope args{};
  args.x[0] = q.const_data_ptr(), args.x[1] = k.const_data_ptr();
  args.weight[0] = channels_of(weight_q), args.weight[1] = channels_of(weight_k);
  args.out[0] = out_q.mutable_data_ptr(), args.out[1] = out_k.mutable_data_ptr();
  args.stride[0] = rows_q.stride, args.batch_stride[0] = rows_q.batch_stride;
  args.stride[1] = rows_k.stride, args.batch_stride[1] = rows_k.batch_stride;
  args.cosine = static_cast<const float*>(cosine.const_data_ptr());
  args.sine = static_cast<const float*>(sine.const_data_ptr());
  args.rows = static_cast<int>(tokens);
  args.batch = static_cast<int>(batch);
  args.row_offset = row_offset;
  args.width = static_cast<int>(width);
  args.head = static_cast<int>(head);
  args.head_major = head_major;
  args.eps = static_cast<float>(eps);
  check_launch(call, rms_norm_rope(args, 2, is_half(q), stream_of(q)), width);
  return {out_q, out_k};
}

// x [pixels, channels], contiguous.
Tensor rms_norm_silu_cuda_rows(Tensor x, Tensor gamma, std::optional<Tensor> bias) {
  const Call call{"rms_norm_silu", x};
  const int64_t width = call.width_of_rows();
  STD_TORCH_CHECK(x.dim() == 2, "rms_norm_silu: x is [pixels, channels]");
  call.require_dense(x, "x");
  call.require_channels(gamma, width, "gamma");
  if (bias) call.require_channels(*bias, width, "bias");
  call.require_gpu();
  const DeviceGuard guard(x.get_device_index());
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  call.require_aligned(out, "the result");
  const RmsNormSilu args{
      x.const_data_ptr(), channels_of(gamma),
      bias ? channels_of(*bias) : Channels{nullptr, false}, out.mutable_data_ptr(), x.size(0),
      static_cast<int>(width)};
  check_launch(call, rms_norm_silu(args, is_half(x), stream_of(x)), width);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "add_norm_cuda(Tensor x, Tensor y, Tensor? gate, Tensor weight, Tensor bias, *,"
      " float eps=1e-6) -> (Tensor, Tensor)");
  m.def("rms_norm_cuda(Tensor x, Tensor weight, *, float eps=1e-6) -> Tensor");
  m.def(
      "rms_norm_rope_cuda(Tensor q_BLD, Tensor k_BLD, Tensor weight_q_D, Tensor weight_k_D,"
      " Tensor cos_Sc, Tensor sin_Sc, *, int num_heads, float eps=1e-6, int row_offset=0,"
      " str layout=\"token\") -> (Tensor, Tensor)");
  m.def("rms_norm_silu_cuda_rows(Tensor x, Tensor gamma, Tensor? bias=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CUDA, m) {
  m.impl("add_norm_cuda", TORCH_BOX(&add_norm_cuda));
  m.impl("rms_norm_cuda", TORCH_BOX(&rms_norm_cuda));
  m.impl("rms_norm_rope_cuda", TORCH_BOX(&rms_norm_rope_cuda));
  m.impl("rms_norm_silu_cuda_rows", TORCH_BOX(&rms_norm_silu_cuda_rows));
}

}  // namespace livetalk::cuda
