"""Triton kernel of ``chunk_attention``: a program has a block of queries of one head."""

import triton
import triton.language as tl

from .._triton_attention import LOG_2, attend, load_tile, store_tile


@triton.jit
def chunk_attention_kernel(
    q, k, v, out, lse, scale, queries, keys, width, heads,
    q_stride_b, q_stride_s, q_stride_h, k_stride_b, k_stride_s, k_stride_h,
    v_stride_b, v_stride_s, v_stride_h, out_stride_b, out_stride_s, out_stride_h,
    NEGATE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr,
    RAGGED: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Use grid (blocks of ROWS queries, H, B): concurrent programs share a head's keys in L2."""
    row, head, batch = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2)
    head_64, batch_64 = head.to(tl.int64), batch.to(tl.int64)
    q += batch_64 * q_stride_b + head_64 * q_stride_h
    out += batch_64 * out_stride_b + head_64 * out_stride_h
    if not TMA:
        k += batch_64 * k_stride_b + head_64 * k_stride_h
        v += batch_64 * v_stride_b + head_64 * v_stride_h
    query = load_tile(q, batch, head, row, 0, queries, width, q_stride_s, ROWS, MAIN, False)
    query_tail = query
    if TAIL:
        query_tail = load_tile(
            q, batch, head, row, MAIN, queries, width, q_stride_s, ROWS, TAIL, False
        )
    if NEGATE:
        query, query_tail = -query, -query_tail
    peak, total, sums, sums_tail = attend(
        query, query_tail, k, v, batch, head, keys, width, k_stride_s, v_stride_s,
        scale, None, ROWS, KEYS, BLOCKS, RAGGED, MAIN, TAIL, TMA,
    )  # fmt: skip
    total = tl.where(total == 0, 1.0, total)  # without keys
    rows = row + tl.arange(0, ROWS)
    logs = (peak + tl.log2(total)) * LOG_2
    tl.store(lse + (batch * heads + head).to(tl.int64) * queries + rows, logs, mask=rows < queries)
    share = (1.0 / total)[:, None]
    store_tile(out, sums * share, row, 0, queries, width, out_stride_s, ROWS, MAIN)
    if TAIL:
        store_tile(out, sums_tail * share, row, MAIN, queries, width, out_stride_s, ROWS, TAIL)
