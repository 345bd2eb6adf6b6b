"""Triton kernel of ``add_norm``: one pass, a row stays in registers from load to store."""

import triton
import triton.language as tl

from .._triton import load_columns, row_indices, row_sum, store_columns


@triton.jit
def add(x, y, gate, dtype, columns, width, GATED: tl.constexpr, FULL: tl.constexpr):
    """Give x + gate * y rounded to ``dtype``."""
    value = load_columns(x, columns, width, FULL)
    branch = load_columns(y, columns, width, FULL)
    if GATED:
        branch *= load_columns(gate, columns, width, FULL)
    return (value + branch).to(dtype)


@triton.jit
def add_and_centre(
    x, y, gate, x_new, eps, width,
    GATED: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Store x'; give both its blocks less its mean (0 past the end) and 1 / deviation [ROWS, 1]."""
    dtype = x_new.dtype.element_ty
    main = tl.arange(0, MAIN)[None, :]
    first = add(x, y, gate, dtype, main, width, GATED, True)
    second = first
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        second = add(x, y, gate, dtype, tail, width, GATED, EVEN)
        # All is loaded before anything is stored: the compiler moves no load across a store.
        store_columns(x_new, tail, second, width, EVEN)
    store_columns(x_new, main, first, width, True)
    # The norm sees the sum as it is stored.
    first, second = first.to(tl.float32), second.to(tl.float32)
    mean = row_sum(first, second, TAIL) / width
    # The variance around the mean: the mean square would lose it where the mean is large.
    first -= mean
    second -= mean
    if TAIL and not EVEN:
        second = tl.where(tail < width, second, 0.0)
    square = row_sum(first * first, second * second, TAIL)
    return first, second, tl.rsqrt(square / width + eps)


@triton.jit
def affine(unit, weight, bias, columns, width, FULL: tl.constexpr):
    """Give unit * weight + bias."""
    scale = load_columns(weight, columns, width, FULL)
    return unit * scale + load_columns(bias, columns, width, FULL)


@triton.jit
def add_norm_kernel(
    x, y, gate, weight, bias, x_new, h, eps, rows, width, GATED: tl.constexpr,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows [width] of x, y, x_new, h; grid (rows / ROWS,)."""
    start = row_indices(rows, ROWS) * width
    first, second, inverse = add_and_centre(
        x + start, y + start, gate, x_new + start, eps, width, GATED, MAIN, TAIL, EVEN
    )
    main = tl.arange(0, MAIN)[None, :]
    normed = affine(first * inverse, weight, bias, main, width, True)
    store_columns(h + start, main, normed, width, True)
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        normed = affine(second * inverse, weight, bias, tail, width, EVEN)
        store_columns(h + start, tail, normed, width, EVEN)
