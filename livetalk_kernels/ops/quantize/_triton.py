"""Triton kernel of ``quantize``: one pass, a row stays in registers from load to store."""

import triton
import triton.language as tl

from .._triton import fp8_scale, load_columns, row_indices, row_peak, to_fp8


@triton.jit
def store_quantized(
    q, scale, first, second, width,
    MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Store fp32 rows, both blocks, at ``q`` [ROWS, 1] and their scales at ``scale`` [ROWS, 1].

    A thread stores 8 bytes, the 8 values that it loaded at once from 16 bits: for 16 bytes, values
    would first have to move between threads. A warp still fills 256 contiguous bytes.
    """
    factor = fp8_scale(row_peak(first, second, TAIL))
    tl.store(scale, factor)
    inverse = 1.0 / factor
    main = tl.max_contiguous(tl.arange(0, MAIN)[None, :], [1, 8])
    tl.store(q + main, to_fp8(first * inverse, INTERPRETED))
    if TAIL:
        tail = tl.max_contiguous(MAIN + tl.arange(0, TAIL)[None, :], [1, 8])
        mask = None if EVEN else tail < width
        tl.store(q + tail, to_fp8(second * inverse, INTERPRETED), mask=mask)


@triton.jit
def quantize_kernel(
    x, q, scale, parts, width, per_row, stride, scale_row, scale_step,
    ROWS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Process parts [width], ``per_row`` in each row of x; rows of x are ``stride`` apart.

    Scales are ``scale_row`` apart from row to row, and ``scale_step`` from part to part.
    Grid (parts / ROWS,): a part with one scale is a row of the program.
    """
    part = row_indices(parts, ROWS)
    row = (part.to(tl.int32) // per_row).to(tl.int64)  # 64-bit division is slow
    step = part - row * per_row
    x += row * stride + step * width
    scale += row * scale_row + step * scale_step
    first = load_columns(x, tl.arange(0, MAIN)[None, :], width, True)
    second = first
    if TAIL:
        second = load_columns(x, MAIN + tl.arange(0, TAIL)[None, :], width, EVEN)
    store_quantized(q + part * width, scale, first, second, width, MAIN, TAIL, EVEN, INTERPRETED)
