"""Triton kernel of ``context_attention``: queries are read once for both softmaxes."""

import triton
import triton.language as tl

from .._triton_attention import attend, load_tile, store_tile


@triton.jit
def context_attention_kernel(
    q, out, scale, bonus, queries, width,
    q_stride_b, q_stride_s, q_stride_h, out_stride_b, out_stride_s, out_stride_h,
    k_image, v_image, keys_image,
    k_stride_b_image, k_stride_s_image, k_stride_h_image,
    v_stride_b_image, v_stride_s_image, v_stride_h_image,
    k_text, v_text, keys_text,
    k_stride_b_text, k_stride_s_text, k_stride_h_text,
    v_stride_b_text, v_stride_s_text, v_stride_h_text,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    KEYS_image: tl.constexpr, BLOCKS_image: tl.constexpr, RAGGED_image: tl.constexpr,
    KEYS_text: tl.constexpr, BLOCKS_text: tl.constexpr, RAGGED_text: tl.constexpr,
    TMA_image: tl.constexpr, TMA_text: tl.constexpr,
):  # fmt: skip
    """Use grid (blocks of ROWS queries, H, B)."""
    row, head, batch = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2)
    head_64, batch_64 = head.to(tl.int64), batch.to(tl.int64)
    q += batch_64 * q_stride_b + head_64 * q_stride_h
    out += batch_64 * out_stride_b + head_64 * out_stride_h
    if not TMA_image:
        k_image += batch_64 * k_stride_b_image + head_64 * k_stride_h_image
        v_image += batch_64 * v_stride_b_image + head_64 * v_stride_h_image
    if not TMA_text:
        k_text += batch_64 * k_stride_b_text + head_64 * k_stride_h_text
        v_text += batch_64 * v_stride_b_text + head_64 * v_stride_h_text
    query = load_tile(q, batch, head, row, 0, queries, width, q_stride_s, ROWS, MAIN, False)
    query_tail = query
    if TAIL:
        query_tail = load_tile(
            q, batch, head, row, MAIN, queries, width, q_stride_s, ROWS, TAIL, False
        )
    _, total, image, image_tail = attend(
        query, query_tail, k_image, v_image, batch, head, keys_image,
        width, k_stride_s_image, v_stride_s_image, scale, None,
        ROWS, KEYS_image, BLOCKS_image, RAGGED_image, MAIN, TAIL, TMA_image,
    )  # fmt: skip
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]  # 0 without keys
    image *= share
    if TAIL:
        image_tail *= share
    _, total, text, text_tail = attend(
        query, query_tail, k_text, v_text, batch, head, keys_text,
        width, k_stride_s_text, v_stride_s_text, scale, bonus,
        ROWS, KEYS_text, BLOCKS_text, RAGGED_text, MAIN, TAIL, TMA_text,
    )  # fmt: skip
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]
    text = image + text * share
    store_tile(out, text, row, 0, queries, width, out_stride_s, ROWS, MAIN)
    if TAIL:
        text_tail = image_tail + text_tail * share
        store_tile(out, text_tail, row, MAIN, queries, width, out_stride_s, ROWS, TAIL)
