// chunk_attention, context_attention and audio_attention: one kernel, three ways to call it.
#include "cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "bindings/cpu.h"

namespace livetalk {
namespace {

constexpr int64_t packed_bytes = 32 << 20;  // units are packed together up to this size

// k and v are [B, S, H, d], or [B, F, S, H, d].
Keys keys_of(const Tensor& q, const Tensor& k, const Tensor& v, float last_bias = 0) {
  const int64_t dims = k.dim();
  bool same = v.dim() == dims && q.size(0) == k.size(0);
  for (int64_t i = 0; i < dims; ++i) same = same && k.size(i) == v.size(i);
  for (int64_t i = 1; i <= 2; ++i) same = same && q.size(4 - i) == k.size(dims - i);
  STD_TORCH_CHECK(same, "batch, heads and channels of queries, keys and values must be the same");
  const ScalarType type = q.scalar_type();
  STD_TORCH_CHECK(
      (type == ScalarType::Float || is_half(q)) && k.scalar_type() == type &&
          v.scalar_type() == type,
      "queries, keys and values must all be float32 or all bfloat16");
  STD_TORCH_CHECK(
      q.stride(3) == 1 && k.stride(dims - 1) == 1 && v.stride(dims - 1) == 1,
      "the channels of queries, keys and values must be contiguous");

  const auto strides = [=](const Tensor& x) {
    return HeadStrides{
        x.stride(0), dims == 5 ? x.stride(1) : 0, x.stride(dims - 3), x.stride(dims - 2)};
  };
  const int64_t count = k.size(dims - 3);
  const int64_t blocks = (count + attention_block - 1) / attention_block;
  const int64_t block = blocks ? (count + blocks - 1) / blocks : 0;
  return {
      k.const_data_ptr(), v.const_data_ptr(), strides(k), strides(v), count, last_bias, blocks,
      (block + attention_block_round - 1) / attention_block_round * attention_block_round};
}

// Completes the arguments that depend on the queries, and runs the kernel.
Tensor run(const Tensor& q, Attention args) {
  const int64_t batch = q.size(0);
  Tensor out = torch::stable::new_empty(q, {batch, q.size(1), q.size(2), q.size(3)});
  args.q = q.const_data_ptr();
  args.q_strides = {q.stride(0), 0, q.stride(1), q.stride(2)};
  args.out = out.mutable_data_ptr();
  args.tokens = q.size(1);
  args.heads = q.size(2);
  args.channels = q.size(3);
  args.half = is_half(q);
  args.tiles = args.half && uses_tiles();
  args.first_frame = args.offset / args.frame_tokens;
  args.frames = (args.offset + args.tokens - 1) / args.frame_tokens + 1 - args.first_frame;
  const int64_t units = batch * args.heads * args.frames;
  if (args.tokens == 0 || args.channels == 0 || units == 0) return out;

  int64_t blocks = 0, block = 0, keys = 0;
  for (int64_t c = 0; c < args.context_count; ++c) {
    blocks += args.contexts[c].blocks;
    block = std::max(block, args.contexts[c].block);
    keys += args.contexts[c].count;
  }
  args.block_bytes = attention_block_bytes(block, args.channels);
  args.unit_bytes = blocks * args.block_bytes;
  const int64_t together = std::clamp<int64_t>(
      packed_bytes / std::max<int64_t>(args.unit_bytes, 1), 1, units);
  Tensor packed = torch::stable::new_empty(q, {together * args.unit_bytes}, ScalarType::Byte);
  args.packed = packed.mutable_data_ptr();
  const int64_t per_frame = std::min(args.tokens, args.frame_tokens);
  const int64_t tasks = (per_frame + attention_queries - 1) / attention_queries;
  for (args.first_unit = 0; args.first_unit < units; args.first_unit += together) {
    const int64_t count = std::min(together, units - args.first_unit);
    parallel_rows(attention_pack_kernel(), args, count * blocks, 2 * block * args.channels);
    // A task spends as long on a key's channel as other ops on a few elements.
    parallel_rows(attention_kernel(), args, count * tasks, 4 * (keys + 1) * args.channels);
  }
  return out;
}

std::tuple<Tensor, Tensor> chunk_attention_cpu(
    Tensor q_BLHd, Tensor k_BSHd, Tensor v_BSHd, std::optional<double> scale) {
  const int64_t batch = q_BLHd.size(0), tokens = q_BLHd.size(1), heads = q_BLHd.size(2);
  Tensor lse = torch::stable::new_empty(q_BLHd, {batch, heads, tokens}, ScalarType::Float);
  Attention args{};
  args.contexts[0] = keys_of(q_BLHd, k_BSHd, v_BSHd);
  args.context_count = 1;
  args.frame_tokens = std::max<int64_t>(tokens, 1);
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  args.scale = static_cast<float>(scale ? *scale : 1 / std::sqrt(q_BLHd.size(3)));
  return {run(q_BLHd, args), lse};
}

Tensor context_attention_cpu(
    Tensor q_BLHd, Tensor k_image_BSHd, Tensor v_image_BSHd, Tensor k_text_BSHd,
    Tensor v_text_BSHd, int64_t text_repeats) {
  Attention args{};
  args.contexts[0] = keys_of(q_BLHd, k_image_BSHd, v_image_BSHd);
  const float bias = std::log2(static_cast<float>(text_repeats));
  args.contexts[1] = keys_of(q_BLHd, k_text_BSHd, v_text_BSHd, bias);
  args.context_count = 2;
  args.frame_tokens = std::max<int64_t>(q_BLHd.size(1), 1);
  args.scale = static_cast<float>(1 / std::sqrt(q_BLHd.size(3)));
  return run(q_BLHd, args);
}

Tensor audio_attention_cpu(
    Tensor q_BLHd, Tensor k_BFSHd, Tensor v_BFSHd, int64_t tokens_per_frame,
    int64_t token_offset) {
  STD_TORCH_CHECK(
      tokens_per_frame > 0 && token_offset >= 0,
      "a frame needs tokens, and the first token a non-negative index");
  STD_TORCH_CHECK(
      token_offset + q_BLHd.size(1) <= k_BFSHd.size(1) * tokens_per_frame,
      "tokens beyond the last audio frame");
  Attention args{};
  args.contexts[0] = keys_of(q_BLHd, k_BFSHd, v_BFSHd);
  args.context_count = 1;
  args.frame_tokens = tokens_per_frame;
  args.offset = token_offset;
  args.scale = static_cast<float>(1 / std::sqrt(q_BLHd.size(3)));
  return run(q_BLHd, args);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(livetalk, m) {
  m.def(
      "chunk_attention_cpu(Tensor q_BLHd, Tensor k_BSHd, Tensor v_BSHd, *, float? scale=None)"
      " -> (Tensor, Tensor)");
  m.def(
      "context_attention_cpu(Tensor q_BLHd, Tensor k_image_BSHd, Tensor v_image_BSHd,"
      " Tensor k_text_BSHd, Tensor v_text_BSHd, *, int text_repeats=1) -> Tensor");
  m.def(
      "audio_attention_cpu(Tensor q_BLHd, Tensor k_BFSHd, Tensor v_BFSHd, *, int tokens_per_frame,"
      " int token_offset=0) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(livetalk, CPU, m) {
  m.impl("chunk_attention_cpu", TORCH_BOX(&chunk_attention_cpu));
  m.impl("context_attention_cpu", TORCH_BOX(&context_attention_cpu));
  m.impl("audio_attention_cpu", TORCH_BOX(&audio_attention_cpu));
}

}  // namespace livetalk
