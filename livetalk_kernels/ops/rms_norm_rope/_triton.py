"""Triton kernel of ``rms_norm_rope``: one pass, a token stays in registers from load to store.

A token's heads are in two blocks, MAIN and TAIL heads of [WIDTH >= d channels], so that one load of
the table's row serves all heads.
"""

import triton
import triton.language as tl

from .._triton import row_indices, row_sum


@triton.jit
def head_mask(head, channel, heads, width, FULL: tl.constexpr, EXACT: tl.constexpr):
    """Mask the valid elements of a block: FULL means all heads are, EXACT all channels."""
    mask = head < heads
    if FULL:
        mask = channel < width
    elif not EXACT:
        mask &= channel < width
    return mask


@triton.jit
def load_heads(pointer, head, channel, heads, width, FULL: tl.constexpr, EXACT: tl.constexpr):
    """Load heads of width ``width`` as fp32, 0 past their ends."""
    offset = head * width + channel
    if FULL and EXACT:
        value = tl.load(pointer + offset)
    else:
        mask = head_mask(head, channel, heads, width, FULL, EXACT)
        value = tl.load(pointer + offset, mask=mask, other=0.0)
    return value.to(tl.float32)


@triton.jit
def store_heads(
    pointer, head, channel, value, stride, heads, width, FULL: tl.constexpr, EXACT: tl.constexpr
):
    """Store heads that are ``stride`` apart, rounded to the pointer's dtype."""
    pointer += head.to(tl.int64) * stride + channel
    value = value.to(pointer.dtype.element_ty)
    if FULL and EXACT:
        tl.store(pointer, value)
    else:
        tl.store(pointer, value, mask=head_mask(head, channel, heads, width, FULL, EXACT))


@triton.jit
def rotate(value, cosine, sine):
    """Rotate the pairs (2j, 2j + 1) of [ROWS, heads, WIDTH] by angles [ROWS, 1, WIDTH / 2]."""
    ROWS: tl.constexpr = value.shape[0]
    HEADS: tl.constexpr = value.shape[1]
    WIDTH: tl.constexpr = value.shape[2]
    even, odd = tl.split(tl.reshape(value, (ROWS, HEADS, WIDTH // 2, 2)))
    pairs = tl.join(even * cosine - odd * sine, even * sine + odd * cosine)
    return tl.reshape(pairs, (ROWS, HEADS, WIDTH))


@triton.jit
def norm_rope(
    x, weight, out, cos, sin, eps, row, token, batch, heads, width,
    stride_b, stride_l, out_row, out_head,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, WIDTH: tl.constexpr,
    EVEN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Process rows of q or k; ``row``, ``token`` and ``batch`` are [ROWS, 1, 1]."""
    x += batch * stride_b + token * stride_l
    out += row * out_row
    channel = tl.arange(0, WIDTH)[None, None, :]
    main = tl.arange(0, MAIN)[None, :, None]
    first = load_heads(x, main, channel, heads, width, True, EXACT)
    second = first
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :, None]
        second = load_heads(x, tail, channel, heads, width, EVEN, EXACT)
    pair = tl.arange(0, WIDTH // 2)[None, None, :]
    cosine = load_heads(cos, token, pair, 0, width // 2, True, EXACT)
    sine = load_heads(sin, token, pair, 0, width // 2, True, EXACT)

    flat = tl.reshape(first, (ROWS, MAIN * WIDTH))
    flat_tail = tl.reshape(second, (ROWS, (TAIL or MAIN) * WIDTH))
    square = row_sum(flat * flat, flat_tail * flat_tail, TAIL * WIDTH)
    inverse = tl.rsqrt(square / (heads * width) + eps)[:, :, None]

    first *= inverse * load_heads(weight, main, channel, heads, width, True, EXACT)
    first = rotate(first, cosine, sine)
    store_heads(out, main, channel, first, out_head, heads, width, True, EXACT)
    if TAIL:
        second *= inverse * load_heads(weight, tail, channel, heads, width, EVEN, EXACT)
        second = rotate(second, cosine, sine)
        store_heads(out, tail, channel, second, out_head, heads, width, EVEN, EXACT)


@triton.jit
def rms_norm_rope_kernel(
    q, k, weight_q, weight_k, q_out, k_out, cos, sin, eps, rows, tokens, heads, width,
    q_stride_b, q_stride_l, k_stride_b, k_stride_l, out_row, out_head,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, WIDTH: tl.constexpr,
    EVEN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Use grid (rows / ROWS, 2): q, then k; the tables start at token 0."""
    row = row_indices(rows, ROWS)[:, :, None]
    batch = (row.to(tl.int32) // tokens).to(tl.int64)  # 64-bit division is slow
    token = row - batch * tokens
    if tl.program_id(1) == 0:
        norm_rope(
            q, weight_q, q_out, cos, sin, eps, row, token, batch, heads, width,
            q_stride_b, q_stride_l, out_row, out_head, ROWS, MAIN, TAIL, WIDTH, EVEN, EXACT,
        )  # fmt: skip
    else:
        norm_rope(
            k, weight_k, k_out, cos, sin, eps, row, token, batch, heads, width,
            k_stride_b, k_stride_l, out_row, out_head, ROWS, MAIN, TAIL, WIDTH, EVEN, EXACT,
        )  # fmt: skip
