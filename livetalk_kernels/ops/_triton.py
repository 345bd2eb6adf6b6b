"""Shared by the Triton kernels of several ops; ``_rows.py`` chooses the constants.

A row is split into two blocks of columns, MAIN (always full) and TAIL (0 for none; full if EVEN),
so that it stays in registers from load to store. Tensors are [ROWS, block].
"""

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)
FP32_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def row_indices(rows, ROWS: tl.constexpr, second=0, PAIR: tl.constexpr = False):
    """Return this program's rows [ROWS, 1], int64; those past the end repeat the last, unmasked.

    If PAIR, a program has twice ROWS: this is the first half, or the second if ``second`` is 1.
    """
    block = tl.program_id(0) * 2 + second if PAIR else tl.program_id(0)
    row = block * ROWS + tl.arange(0, ROWS)
    return tl.minimum(row, rows - 1).to(tl.int64)[:, None]


@triton.jit
def load_columns(pointer, columns, width, FULL: tl.constexpr):
    """Load ``pointer + columns`` as fp32, 0 past ``width``; ``pointer`` may be [ROWS, 1]."""
    mask = None if FULL else columns < width
    other = None if FULL else 0.0
    return tl.load(pointer + columns, mask=mask, other=other).to(tl.float32)


@triton.jit
def store_columns(pointer, columns, value, width, FULL: tl.constexpr):
    """Store [ROWS, block] at ``pointer`` [ROWS, 1] + ``columns``, rounded to its dtype."""
    mask = None if FULL else columns < width
    tl.store(pointer + columns, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def row_sum(first, second, TAIL: tl.constexpr):
    """Sum each row [ROWS, 1]: fold MAIN to TAIL's length, then exchange between threads once."""
    if TAIL:
        ROWS: tl.constexpr = first.shape[0]
        FOLDS: tl.constexpr = first.shape[1] // TAIL
        first = tl.sum(tl.reshape(first, (ROWS, FOLDS, TAIL)), 1) + second
    return tl.sum(first, 1)[:, None]


@triton.jit
def magnitude_bits(value):
    """Return the bits of |value|: they sort like the values, with NaN on top (max drops it)."""
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def row_peak(first, second, TAIL: tl.constexpr):
    """Compute the largest magnitude of each row [ROWS, 1]; NaN if the row contains one."""
    peak = magnitude_bits(first)
    if TAIL:
        ROWS: tl.constexpr = first.shape[0]
        FOLDS: tl.constexpr = first.shape[1] // TAIL
        folded = tl.max(tl.reshape(peak, (ROWS, FOLDS, TAIL)), 1)
        peak = tl.maximum(folded, magnitude_bits(second))
    return tl.max(peak, 1)[:, None].to(tl.float32, bitcast=True)


@triton.jit
def fp8_scale(peak):
    """Compute the scale for values up to ``peak``: peak / 448, not denormal; 1 for 0."""
    scale = peak / FP8_MAX
    scale = tl.where(scale < FP32_TINY, FP32_TINY, scale)
    return tl.where(peak == 0.0, 1.0, scale)


@triton.jit
def to_fp8(value, INTERPRETED: tl.constexpr):
    """Clamp fp32 to +-448 and round to e4m3."""
    value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
    if INTERPRETED:
        # Triton's interpreter rounds wrongly, so pass it values that need no rounding: 3 bits
        # after the leading one, and multiples of 2**-9 below 2**-6.
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
        fixed = (value + 24576.0) - 24576.0  # fp32 has steps of 2**-9 there
        value = tl.where(tl.abs(value) < 0.015625, fixed, bits.to(tl.float32, bitcast=True))
    return value.to(tl.float8e4nv)
