"""Triton kernel of ``audio_attention``: a program has a block of queries of one frame's head."""

import triton
import triton.language as tl

from .._triton_attention import attend, load_tile, store_tile


@triton.jit
def audio_attention_kernel(
    q, k, v, out, scale, queries, keys, width, tokens_per_frame, token_offset, blocks,
    q_stride_b, q_stride_s, q_stride_h, out_stride_b, out_stride_s, out_stride_h,
    k_stride_b, k_stride_f, k_stride_s, k_stride_h, v_stride_b, v_stride_f, v_stride_s, v_stride_h,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr, RAGGED: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Use grid (H, frames * blocks, B): concurrent programs read neighbouring memory."""
    head, batch = tl.program_id(0), tl.program_id(2)
    frame = token_offset // tokens_per_frame + tl.program_id(1) // blocks
    begin = frame * tokens_per_frame - token_offset
    end = tl.minimum(begin + tokens_per_frame, queries)
    row = tl.maximum(begin, 0) + tl.program_id(1) % blocks * ROWS
    if row >= end:  # the shard has only part of this frame
        return
    head_64, batch_64 = head.to(tl.int64), batch.to(tl.int64)
    q += batch_64 * q_stride_b + head_64 * q_stride_h
    out += batch_64 * out_stride_b + head_64 * out_stride_h
    k += batch_64 * k_stride_b + head_64 * k_stride_h + frame.to(tl.int64) * k_stride_f
    v += batch_64 * v_stride_b + head_64 * v_stride_h + frame.to(tl.int64) * v_stride_f
    query = load_tile(q, batch, head, row, 0, end, width, q_stride_s, ROWS, MAIN, False)
    query_tail = query
    if TAIL:
        query_tail = load_tile(q, batch, head, row, MAIN, end, width, q_stride_s, ROWS, TAIL, False)
    _, total, sums, sums_tail = attend(
        query, query_tail, k, v, batch, head, keys, width, k_stride_s, v_stride_s,
        scale, None, ROWS, KEYS, BLOCKS, RAGGED, MAIN, TAIL, False,
    )  # fmt: skip
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]  # 0 without keys
    store_tile(out, sums * share, row, 0, end, width, out_stride_s, ROWS, MAIN)
    if TAIL:
        store_tile(out, sums_tail * share, row, MAIN, end, width, out_stride_s, ROWS, TAIL)
