"""Triton kernel of ``add_norm_quant``: one pass, a row stays in registers from load to store."""

import triton
import triton.language as tl

from .._triton import row_indices
from ..add_norm._triton import add_and_centre, affine
from ..quantize._triton import store_quantized


@triton.jit
def add_norm_quant_kernel(
    x, y, gate, weight, bias, x_new, q, scale, eps, rows, width, GATED: tl.constexpr,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rows [width] of x, y, x_new, q and one scale each; grid (rows / ROWS,)."""
    row = row_indices(rows, ROWS)
    start = row * width
    first, second, inverse = add_and_centre(
        x + start, y + start, gate, x_new + start, eps, width, GATED, MAIN, TAIL, EVEN
    )
    first = affine(first * inverse, weight, bias, tl.arange(0, MAIN)[None, :], width, True)
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        second = affine(second * inverse, weight, bias, tail, width, EVEN)
    store_quantized(q + start, scale + row, first, second, width, MAIN, TAIL, EVEN, INTERPRETED)
