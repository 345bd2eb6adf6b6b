"""Triton kernels of the FP8 linears: persistent programs, operands by TMA, FP8 tensor cores.

Tiles are BLOCK_M rows by one or two panels of 128 columns; two panels share the data read from a.
Hopper's tensor cores keep about 14 bits of an FP8 sum, so every 128 steps of K are summed
separately and added in fp32 registers, where scales per block are applied. Panels are multiplied
sequentially: the sums of 128 x 256 and one panel's part still fit the registers of two warpgroups.
"""

import triton
import triton.language as tl

from .._triton import fp8_scale, magnitude_bits, to_fp8

PANEL = tl.constexpr(128)  # columns; also the blocks of K and of the results' scales


@triton.jit
def _tile_origin(
    tile, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr
):
    """Compute a tile's first row and column; GROUP rows of tiles are traversed column by column.

    Concurrent tiles then form nearly a square, which reads the least from L2.
    """
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    first = tile // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    inside = tile % (GROUP * across)
    return (first + inside % height) * BLOCK_M, inside // height * BLOCK_N


@triton.jit
def _operand(tile, INTERPRETED: tl.constexpr):
    """Convert a tile for a product; Triton's interpreter takes e4m3's NaN for 480, so pass fp32."""
    if INTERPRETED:
        is_nan = (tile.to(tl.uint8, bitcast=True) & 0x7F) == 0x7F
        return tl.where(is_nan, float("nan"), tile.to(tl.float32))
    else:
        return tile


@triton.jit
def _scale_rows(row, rows, scale_row, BLOCK_M: tl.constexpr):
    """Locate a tile's scales; rows past the end repeat the last, as they are never stored."""
    return tl.minimum(row + tl.arange(0, BLOCK_M), rows - 1).to(tl.int64) * scale_row


@triton.jit
def _products(
    a, b, scale_a, scale_row, scale_step, row, column, rows, depth,
    BLOCK_M: tl.constexpr, BLOCKED: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Sum two panels over K, [BLOCK_M, 128] each; the second is zero unless WIDE."""
    left = tl.zeros([BLOCK_M, PANEL], tl.float32)
    right = tl.zeros([BLOCK_M, PANEL], tl.float32)
    steps = tl.cdiv(depth, PANEL)
    scales = scale_a + _scale_rows(row, rows, scale_row, BLOCK_M)
    for step in range(steps):
        scale = tl.load(scales + step * scale_step)[:, None] if BLOCKED else 1.0
        tile = _operand(a.load([row, step * PANEL]), INTERPRETED)
        panel = _operand(b.load([column, step * PANEL]), INTERPRETED)
        left += tl.dot(tile, panel.T) * scale
        if WIDE:
            panel = _operand(b.load([column + PANEL, step * PANEL]), INTERPRETED)
            right += tl.dot(tile, panel.T) * scale
    return left, right


@triton.jit
def _finish(
    total, scale_a, scale_row, scale_b, bias, row, column, rows, columns,
    BLOCK_M: tl.constexpr, BLOCKED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Compute a panel's results in fp32."""
    index = column + tl.arange(0, PANEL)
    inside = index < columns
    factor = tl.load(scale_b + index, mask=inside, other=0.0)[None, :]
    if not BLOCKED:
        factor *= tl.load(scale_a + _scale_rows(row, rows, scale_row, BLOCK_M))[:, None]
    if BIASED:
        shift = tl.load(bias + index, mask=inside, other=0.0).to(tl.float32)
        return total * factor + shift[None, :]
    else:
        return total * factor


@triton.jit
def _store(out, value, row, column, rows, columns, BLOCK_M: tl.constexpr, TMA_OUT: tl.constexpr):
    if TMA_OUT:
        out.store([row, column], value.to(out.dtype))
    else:
        m, n = row + tl.arange(0, BLOCK_M), column + tl.arange(0, PANEL)
        mask = (m < rows)[:, None] & (n < columns)[None, :]
        pointers = out + m.to(tl.int64)[:, None] * columns + n[None, :]
        tl.store(pointers, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def fp8_gemm_kernel(
    a, b, scale_a, scale_row, scale_step, scale_b, bias, out, rows, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCKED: tl.constexpr, BIASED: tl.constexpr, INTERPRETED: tl.constexpr, TMA_OUT: tl.constexpr,
):  # fmt: skip
    """Compute out [rows, columns]; a, b (out if TMA_OUT) are descriptors of [BLOCK_M or 128, 128].

    Scales of a are ``scale_row`` apart from row to row, ``scale_step`` from block to block of K.
    """
    WIDE: tl.constexpr = BLOCK_N > PANEL
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        row, column = _tile_origin(tile, rows, columns, BLOCK_M, BLOCK_N, GROUP)
        left, right = _products(
            a, b, scale_a, scale_row, scale_step, row, column, rows, depth,
            BLOCK_M, BLOCKED, WIDE, INTERPRETED,
        )  # fmt: skip
        left = _finish(
            left, scale_a, scale_row, scale_b, bias, row, column, rows, columns,
            BLOCK_M, BLOCKED, BIASED,
        )  # fmt: skip
        _store(out, left, row, column, rows, columns, BLOCK_M, TMA_OUT)
        if WIDE:
            column += PANEL
            right = _finish(
                right, scale_a, scale_row, scale_b, bias, row, column, rows, columns,
                BLOCK_M, BLOCKED, BIASED,
            )  # fmt: skip
            _store(out, right, row, column, rows, columns, BLOCK_M, TMA_OUT)


@triton.jit
def _gelu(x):
    """Compute GELU_tanh(x) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3), with exp2."""
    return x / (1.0 + tl.exp2(x * (-2.302208198144325 - 0.1029432395800235 * (x * x))))


@triton.jit
def _store_fp8(
    q, scales, out_row, out_step, value, row, column, rows, columns,
    BLOCK_M: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Quantise a panel, whose 128 columns are one block, and store it with its scales."""
    peak = tl.max(magnitude_bits(value), 1).to(tl.float32, bitcast=True)
    scale = fp8_scale(peak)
    q.store([row, column], to_fp8(value * (1.0 / scale)[:, None], INTERPRETED))
    m = row + tl.arange(0, BLOCK_M)
    pointers = scales + m.to(tl.int64) * out_row + column // PANEL * out_step
    tl.store(pointers, scale, mask=m < tl.where(column < columns, rows, 0))


@triton.jit
def fp8_gemm_gelu_quant_kernel(
    a, b, scale_a, scale_row, scale_step, scale_b, bias, q, scales, out_row, out_step,
    rows, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCKED: tl.constexpr, BIASED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Compute q [rows, columns], also a descriptor, and scales [rows, columns / 128].

    Scales are ``out_row`` and ``out_step`` apart; other arguments as above.
    """
    WIDE: tl.constexpr = BLOCK_N > PANEL
    tiles = tl.cdiv(rows, BLOCK_M) * tl.cdiv(columns, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        row, column = _tile_origin(tile, rows, columns, BLOCK_M, BLOCK_N, GROUP)
        left, right = _products(
            a, b, scale_a, scale_row, scale_step, row, column, rows, depth,
            BLOCK_M, BLOCKED, WIDE, INTERPRETED,
        )  # fmt: skip
        left = _finish(
            left, scale_a, scale_row, scale_b, bias, row, column, rows, columns,
            BLOCK_M, BLOCKED, BIASED,
        )  # fmt: skip
        _store_fp8(
            q, scales, out_row, out_step, _gelu(left), row, column, rows, columns,
            BLOCK_M, INTERPRETED,
        )  # fmt: skip
        if WIDE:
            column += PANEL
            right = _finish(
                right, scale_a, scale_row, scale_b, bias, row, column, rows, columns,
                BLOCK_M, BLOCKED, BIASED,
            )  # fmt: skip
            _store_fp8(
                q, scales, out_row, out_step, _gelu(right), row, column, rows, columns,
                BLOCK_M, INTERPRETED,
            )  # fmt: skip
