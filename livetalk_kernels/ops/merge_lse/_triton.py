"""Triton kernel of ``merge_lse``: one pass over both results."""

import triton
import triton.language as tl

from .._triton import load_columns, store_columns


@triton.jit
def merge_lse_kernel(
    out_a, lse_a, out_b, lse_b, out, lse, tokens, heads, width,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Process TOKENS of HEADS heads, WIDTH >= width; grid (heads / HEADS, tokens / TOKENS, batch).

    Several tokens at once, because the LSEs of neighbouring tokens are contiguous in memory.
    """
    index = tl.arange(0, TOKENS * HEADS)[:, None]
    # Tokens past the end repeat the last, unmasked.
    token = tl.minimum(tl.program_id(1) * TOKENS + index // HEADS, tokens - 1)
    head = tl.program_id(0) * HEADS + index % HEADS
    batch = tl.program_id(2).to(tl.int64)
    row = ((batch * tokens + token) * heads + head) * width
    column = tl.arange(0, WIDTH)[None, :]
    a = load_columns(out_a + row, column, width, EXACT)
    b = load_columns(out_b + row, column, width, EXACT)
    place = (batch * heads + head) * tokens + token
    log_a = tl.load(lse_a + place)
    log_b = tl.load(lse_b + place)

    peak = tl.maximum(log_a, log_b)
    peak = tl.where(peak == float("-inf"), 0.0, peak)  # else -inf - -inf = NaN
    weight_a = tl.exp(log_a - peak)
    weight_b = tl.exp(log_b - peak)
    total = weight_a + weight_b
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    tl.store(lse + place, tl.where(empty, float("-inf"), tl.log(total) + peak))
    inverse = 1.0 / total
    merged = a * (weight_a * inverse) + b * (weight_b * inverse)
    store_columns(out + row, column, merged, width, EXACT)
