"""Triton kernel of ``add_norm``: one pass, rows stay in registers from load to store.

A program has ROWS rows, or twice as many with PAIR, in two halves that proceed in lockstep: gate,
weight and bias, in fp32 six times the bytes of a 16-bit row of x, are loaded once for both. The
compiler merges equal loads as long as nothing is stored between them. As one tensor of two rows,
the operands of the vectors would have another layout than the vectors, and would be exchanged
between threads through shared memory.
"""

import triton
import triton.language as tl

from .._triton import load_columns, row_indices, row_sum, store_columns


@triton.jit
def sum_columns(x, y, gate, dtype, columns, width, GATED: tl.constexpr, FULL: tl.constexpr):
    """Compute x + gate * y, rounded to ``dtype``."""
    value = load_columns(x, columns, width, FULL)
    branch = load_columns(y, columns, width, FULL)
    if GATED:
        branch *= load_columns(gate, columns, width, FULL)
    return (value + branch).to(dtype)


@triton.jit
def sum_rows(
    x, y, gate, dtype, width,
    GATED: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Compute both blocks of x + gate * y, rounded to ``dtype``."""
    first = sum_columns(x, y, gate, dtype, tl.arange(0, MAIN)[None, :], width, GATED, True)
    second = first
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        second = sum_columns(x, y, gate, dtype, tail, width, GATED, EVEN)
    return first, second


@triton.jit
def unit_rows(
    first, second, eps, width, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr
):
    """Subtract the mean from both blocks and divide by the deviation; 0 past the end."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    mean = row_sum(first, second, TAIL) / width
    # The variance around the mean: the mean square would lose it where the mean is large.
    first -= mean
    second -= mean
    if TAIL and not EVEN:
        second = tl.where(MAIN + tl.arange(0, TAIL)[None, :] < width, second, 0.0)
    square = row_sum(first * first, second * second, TAIL)
    inverse = tl.rsqrt(square / width + eps)
    return first * inverse, second * inverse


@triton.jit
def affine_rows(
    first, second, weight, bias, width,
    MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Multiply both blocks by weight and add bias."""
    main = tl.arange(0, MAIN)[None, :]
    first = first * load_columns(weight, main, width, True) + load_columns(bias, main, width, True)
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)[None, :]
        scale = load_columns(weight, tail, width, EVEN)
        second = second * scale + load_columns(bias, tail, width, EVEN)
    return first, second


@triton.jit
def store_rows(
    out, first, second, width, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr
):
    """Store both blocks at ``out`` [ROWS, 1]."""
    store_columns(out, tl.arange(0, MAIN)[None, :], first, width, True)
    if TAIL:
        store_columns(out, MAIN + tl.arange(0, TAIL)[None, :], second, width, EVEN)


@triton.jit
def add_and_normalise(
    x, y, gate, weight, bias, x_new, row, other, eps, width, GATED: tl.constexpr,
    PAIR: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Store x'; return both blocks of h in fp32, for rows ``row`` and, if PAIR, ``other``."""
    dtype = x_new.dtype.element_ty
    start, start_b = row * width, other * width
    first, second = sum_rows(x + start, y + start, gate, dtype, width, GATED, MAIN, TAIL, EVEN)
    first_b, second_b = first, second
    if PAIR:
        first_b, second_b = sum_rows(
            x + start_b, y + start_b, gate, dtype, width, GATED, MAIN, TAIL, EVEN
        )
        store_rows(x_new + start_b, first_b, second_b, width, MAIN, TAIL, EVEN)
    # Load everything before storing anything: the compiler moves no load across a store.
    store_rows(x_new + start, first, second, width, MAIN, TAIL, EVEN)
    # The norm sees the sum as it is stored.
    first, second = unit_rows(first, second, eps, width, MAIN, TAIL, EVEN)
    if PAIR:
        first_b, second_b = unit_rows(first_b, second_b, eps, width, MAIN, TAIL, EVEN)
        first_b, second_b = affine_rows(first_b, second_b, weight, bias, width, MAIN, TAIL, EVEN)
    first, second = affine_rows(first, second, weight, bias, width, MAIN, TAIL, EVEN)
    return first, second, first_b, second_b


@triton.jit
def add_norm_kernel(
    x, y, gate, weight, bias, x_new, h, eps, rows, width, GATED: tl.constexpr,
    ROWS: tl.constexpr, PAIR: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Process rows [width] of x, y, x_new, h; grid (rows / ROWS,), half of it if PAIR."""
    row, other = row_indices(rows, ROWS, 0, PAIR), row_indices(rows, ROWS, 1, PAIR)
    first, second, first_b, second_b = add_and_normalise(
        x, y, gate, weight, bias, x_new, row, other, eps, width, GATED, PAIR, MAIN, TAIL, EVEN
    )
    store_rows(h + row * width, first, second, width, MAIN, TAIL, EVEN)
    if PAIR:
        store_rows(h + other * width, first_b, second_b, width, MAIN, TAIL, EVEN)
