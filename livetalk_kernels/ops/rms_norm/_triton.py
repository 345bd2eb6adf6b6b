"""Triton kernel of ``rms_norm``: one pass, a row stays in registers from load to store."""

import triton
import triton.language as tl

from .._triton import load_columns, row_indices, row_sum, store_columns


@triton.jit
def rms_norm_kernel(
    x, weight, out, eps, rows, width, stride,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Process rows [width] of x, ``stride`` apart, and of out; grid (rows / ROWS,)."""
    row = row_indices(rows, ROWS)
    x += row * stride
    out += row * width
    main = tl.arange(0, MAIN)[None, :]
    first = load_columns(x, main, width, True)
    second = first
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        second = load_columns(x, tail, width, EVEN)
    square = row_sum(first * first, second * second, TAIL)
    inverse = tl.rsqrt(square / width + eps)
    first *= inverse * load_columns(weight, main, width, True)
    store_columns(out, main, first, width, True)
    if TAIL:
        second *= inverse * load_columns(weight, tail, width, EVEN)
        store_columns(out, tail, second, width, EVEN)
