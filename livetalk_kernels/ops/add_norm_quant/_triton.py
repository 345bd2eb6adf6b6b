"""Triton kernel of ``add_norm_quant``: one pass, rows stay in registers from load to store."""

import triton
import triton.language as tl

from .._triton import row_indices
from ..add_norm._triton import add_and_normalise
from ..quantize._triton import store_quantized


@triton.jit
def add_norm_quant_kernel(
    x, y, gate, weight, bias, x_new, q, scale, eps, rows, width, GATED: tl.constexpr,
    ROWS: tl.constexpr, PAIR: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    EVEN: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Process rows [width] of x, y, x_new, q and their scales; grid (rows / ROWS,), half if PAIR.

    Rows are assigned to programs as in ``add_norm``.
    """
    row, other = row_indices(rows, ROWS, 0, PAIR), row_indices(rows, ROWS, 1, PAIR)
    first, second, first_b, second_b = add_and_normalise(
        x, y, gate, weight, bias, x_new, row, other, eps, width, GATED, PAIR, MAIN, TAIL, EVEN
    )
    store_quantized(
        q + row * width, scale + row, first, second, width, MAIN, TAIL, EVEN, INTERPRETED
    )
    if PAIR:
        store_quantized(
            q + other * width, scale + other, first_b, second_b, width, MAIN, TAIL, EVEN,
            INTERPRETED,
        )  # fmt: skip
