#pragma once

#include "cpu/kernels.h"

namespace livetalk {

// Elements between neighbours of a tensor [batch, frame, token, head, channel]; the channels of a
// head are contiguous.
struct HeadStrides {
  int64_t batch, frame, token, head;
};

// Keys and values of one softmax, [batch, frame, count, heads, channels].
struct Keys {
  const void* k;
  const void* v;
  HeadStrides k_strides, v_strides;
  int64_t count;
  float last_bias;        // added to the last key's score, as a binary logarithm
  int64_t blocks, block;  // keys are packed in that many blocks, each but the last of `block` keys
};

// out = the sum over the contexts of softmax(scale * q k^T + bias) v. The queries are the tokens
// [offset, offset + tokens) of a sequence in frames of frame_tokens, and see their frame's keys.
// A unit is one head of one batch element in one of the frames in use, first_frame and after.
struct Attention {
  const void* q;  // [batch, tokens, heads, channels]
  HeadStrides q_strides;
  void* out;   // the same, contiguous
  float* lse;  // [batch, heads, tokens] of the first context, or null
  Keys contexts[2];
  int64_t context_count;
  int64_t tokens, heads, channels;
  int64_t frame_tokens, offset, first_frame, frames;
  int64_t first_unit;  // that `packed` has room for
  void* packed;        // of each unit its packed blocks, context by context; aligned to 64 bytes
  int64_t block_bytes, unit_bytes;
  float scale;
  bool half;   // q, k, v and out are bf16, not fp32
  bool tiles;  // bf16 in tiles, where the instruction set has pairs of bf16
};

constexpr int64_t attention_queries = 32;     // queries of one task
constexpr int64_t attention_block = 192;      // keys of a block at most
constexpr int64_t attention_block_round = 8;  // a block holds a multiple of these

// Keys or channels in whole vectors and tiles.
constexpr int64_t attention_round(int64_t count) { return (count + 31) / 32 * 32; }

// Room for a block of packed keys and values, whatever the instruction set.
constexpr int64_t attention_block_bytes(int64_t block, int64_t channels) {
  return 4 * 2 * attention_round(block) * attention_round(channels);
}

}  // namespace livetalk

// Pack the blocks [begin, end) of all units from first_unit on.
LIVETALK_KERNEL(attention_pack, const Attention& args, int64_t begin, int64_t end)
// Run the tasks [begin, end) of all units from first_unit on, whose keys are packed. A unit has
// one task for every attention_queries of a frame's tokens.
LIVETALK_KERNEL(attention, const Attention& args, int64_t begin, int64_t end)
