"""Triton kernel of ``add_norm``: one program, one row, held in registers from load to store."""

import triton
import triton.language as tl


@triton.jit
def _add(x, y, gate, x_new, row, columns, width, GATED: tl.constexpr, EVEN: tl.constexpr):
    mask = None if EVEN else columns < width
    other = None if EVEN else 0.0
    offset = row * width + columns
    branch = tl.load(y + offset, mask=mask, other=other).to(tl.float32)
    if GATED:
        branch *= tl.load(gate + columns, mask=mask, other=other).to(tl.float32)
    # The norm sees the sum as it is stored.
    value = (tl.load(x + offset, mask=mask, other=other).to(tl.float32) + branch).to(
        x_new.dtype.element_ty
    )
    tl.store(x_new + offset, value, mask=mask)
    return value.to(tl.float32)


@triton.jit
def _centre(value, mean, columns, width, EVEN: tl.constexpr):
    centred = value - mean
    return centred if EVEN else tl.where(columns < width, centred, 0.0)


@triton.jit
def _affine(unit, weight, bias, h, row, columns, width, EVEN: tl.constexpr):
    mask = None if EVEN else columns < width
    scale = tl.load(weight + columns, mask=mask).to(tl.float32)
    shift = tl.load(bias + columns, mask=mask).to(tl.float32)
    result = (unit * scale + shift).to(h.dtype.element_ty)
    tl.store(h + row * width + columns, result, mask=mask)


@triton.jit
def add_norm_kernel(
    x, y, gate, weight, bias, x_new, h, eps, width,
    GATED: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows [width] = blocks MAIN (always full) and TAIL (full if EVEN); grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    main = tl.arange(0, MAIN)
    first = _add(x, y, gate, x_new, row, main, width, GATED, True)
    total = tl.sum(first, 0)
    if TAIL:
        tail = MAIN + tl.arange(0, TAIL)
        second = _add(x, y, gate, x_new, row, tail, width, GATED, EVEN)
        total += tl.sum(second, 0)
    mean = total / width
    # The variance around the mean: the mean square would lose it where the mean is large.
    first -= mean
    square = tl.sum(first * first, 0)
    if TAIL:
        second = _centre(second, mean, tail, width, EVEN)
        square += tl.sum(second * second, 0)
    inverse = 1.0 / tl.sqrt_rn(square / width + eps)
    _affine(first * inverse, weight, bias, h, row, main, width, True)
    if TAIL:
        _affine(second * inverse, weight, bias, h, row, tail, width, EVEN)
