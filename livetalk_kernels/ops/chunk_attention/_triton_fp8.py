"""Triton kernels of FP8 ``chunk_attention``: two passes over the keys prepare them, one attends.

Buffers between them are indexed by head, b * H + h, and hold whole blocks of keys, zero-padded.
"""

import triton
import triton.language as tl

from .._triton import fp8_scale, magnitude_bits, to_fp8
from .._triton_attention import LOG_2, load_tile, store_tile


@triton.jit
def statistics_kernel(
    k, v, partial, keys, width, heads, k_stride_b, k_stride_s, k_stride_h,
    v_stride_b, v_stride_s, v_stride_h, KEYS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Use grid (blocks, H, B); partial [4, B H, blocks, WIDTH]: per channel of each block.

    They are contributions to the means of k and of v, and v's largest and smallest value. A program
    is one warp with ROWS keys at a time: a thread then has whole columns of 128 bits.
    """
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    k += batch.to(tl.int64) * k_stride_b + head.to(tl.int64) * k_stride_h
    v += batch.to(tl.int64) * v_stride_b + head.to(tl.int64) * v_stride_h
    k_share, v_share = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    largest, smallest = v_share - float("inf"), v_share + float("inf")
    for row in range(block * KEYS, tl.minimum((block + 1) * KEYS, keys), ROWS):
        inside = (row + tl.arange(0, ROWS) < keys)[:, None]
        tile = load_tile(k, batch, head, row, 0, keys, width, k_stride_s, ROWS, WIDTH, False)
        k_share += tl.sum(tile.to(tl.float32) * (1.0 / keys), 0)
        tile = load_tile(v, batch, head, row, 0, keys, width, v_stride_s, ROWS, WIDTH, False)
        tile = tile.to(tl.float32)
        v_share += tl.sum(tile * (1.0 / keys), 0)
        largest = tl.maximum(largest, tl.max(tl.where(inside, tile, float("-inf")), 0))
        smallest = tl.minimum(smallest, tl.min(tl.where(inside, tile, float("inf")), 0))
    partial += ((batch * heads + head).to(tl.int64) * tl.num_programs(0) + block) * WIDTH
    partial += tl.arange(0, WIDTH)
    step = tl.num_programs(2).to(tl.int64) * heads * tl.num_programs(0) * WIDTH
    tl.store(partial, k_share)
    tl.store(partial + step, v_share)
    tl.store(partial + 2 * step, largest)
    tl.store(partial + 3 * step, smallest)


@triton.jit
def combine_kernel(partial, channels, blocks, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Use grid (B H,); channels [3, B H, WIDTH]: means of k and of v, v's scale."""
    head = tl.program_id(0).to(tl.int64)
    step = tl.num_programs(0).to(tl.int64) * blocks * WIDTH
    partial += head * blocks * WIDTH + tl.arange(0, WIDTH)[None, :]
    k_mean, v_mean = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    largest, smallest = v_mean - float("inf"), v_mean + float("inf")
    for first in range(0, blocks, ROWS):
        block = first + tl.arange(0, ROWS)[:, None]
        inside, parts = block < blocks, partial + block * WIDTH
        k_mean += tl.sum(tl.load(parts, mask=inside, other=0.0), 0)
        v_mean += tl.sum(tl.load(parts + step, mask=inside, other=0.0), 0)
        values = tl.load(parts + 2 * step, mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(values, 0))
        values = tl.load(parts + 3 * step, mask=inside, other=float("inf"))
        smallest = tl.minimum(smallest, tl.min(values, 0))
    peak = tl.maximum(largest - v_mean, v_mean - smallest)
    channels += head * WIDTH + tl.arange(0, WIDTH)
    step = tl.num_programs(0).to(tl.int64) * WIDTH
    tl.store(channels, k_mean)
    tl.store(channels + step, v_mean)
    tl.store(channels + 2 * step, fp8_scale(peak))


@triton.jit
def _centred(source, mean, rows, keys, width, stride, WIDTH: tl.constexpr):
    """Load keys ``rows`` of a head minus their mean, in fp32; 0 past the end."""
    columns, inside = tl.arange(0, WIDTH), (rows < keys)[:, None]
    pointers = source + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tile = tl.load(pointers, mask=inside & (columns < width)[None, :], other=0.0)
    return tl.where(inside, tile.to(tl.float32) - mean[None, :], 0.0)


@triton.jit
def quantize_keys_kernel(
    k, v, channels, k_fp8, v_fp8, k_scales, keys, width, heads,
    k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
    KEYS: tl.constexpr, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Use grid (blocks, H, B): k_fp8 [B H, padded, WIDTH], v_fp8 [B H, WIDTH, padded], k_scales."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    k += batch.to(tl.int64) * k_stride_b + head.to(tl.int64) * k_stride_h
    v += batch.to(tl.int64) * v_stride_b + head.to(tl.int64) * v_stride_h
    index = (batch * heads + head).to(tl.int64)
    padded, step = tl.num_programs(0) * KEYS, tl.num_programs(2).to(tl.int64) * heads * WIDTH
    columns, offsets = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    channels += index * WIDTH + columns
    k_fp8 += (index * padded + block * KEYS) * WIDTH
    v_fp8 += index * padded * WIDTH + block * KEYS

    mean = tl.load(channels)
    tile = _centred(k, mean, block * KEYS + offsets, keys, width, k_stride_s, WIDTH)
    scale = fp8_scale(tl.max(magnitude_bits(tile)).to(tl.float32, bitcast=True))
    tl.store(k_scales + index * tl.num_programs(0) + block, scale)
    tile = to_fp8(tile * (1.0 / scale), INTERPRETED)
    tl.store(k_fp8 + offsets[:, None] * WIDTH + columns[None, :], tile)

    # The order that `_operand_order` gives the weights.
    rows = offsets // 16 * 16 + offsets // 2 % 2 * 8 + offsets // 4 % 4 * 2 + offsets % 2
    mean = tl.load(channels + step)
    tile = _centred(v, mean, block * KEYS + rows, keys, width, v_stride_s, WIDTH)
    tile = to_fp8(tile * (1.0 / tl.load(channels + 2 * step))[None, :], INTERPRETED)
    tl.store(v_fp8 + columns[:, None] * padded + offsets[None, :], tile.T)


@triton.jit
def _operand_order(weights, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Reorder 16 neighbours, 8b + 2c + e, to 4c + 2b + e: no value leaves its thread.

    A thread that has columns 2c and 2c + 1 of every 8 after a product must have 4c .. 4c + 3 of
    every 16 in an FP8 operand.
    """
    parts = tl.reshape(weights, (ROWS, KEYS // 16, 2, 4, 2))
    return tl.reshape(tl.permute(parts, (0, 1, 3, 2, 4)), (ROWS, KEYS))


@triton.jit
def _operand(tile, INTERPRETED: tl.constexpr):
    """Convert a tile for a product; Triton's interpreter multiplies fp32."""
    return tile.to(tl.float32) if INTERPRETED else tile


@triton.jit
def _block(
    query, k, v, k_scales, head, block, blocks, keys, factor, peak, total, out,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, EDGE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    tile = _operand(k.load([(head * blocks + block) * KEYS, 0]), INTERPRETED)
    scores = tl.dot(query, tile.T)
    scale = tl.load(k_scales + head.to(tl.int64) * blocks + block)
    # Weights are up to 2^8 to use FP8's range. `factor`, used alone first, changes its layout
    # outside the loop.
    if EDGE:
        inside = block * KEYS + tl.arange(0, KEYS) < keys
        scores = tl.where(inside[None, :], scores * (factor[:, None] * scale), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - (new_peak - 8.0)[:, None])
    else:
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor * scale)
        weights = tl.exp2(scores * (factor[:, None] * scale) - (new_peak - 8.0)[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    # On a GPU nothing needs clamping.
    weights = to_fp8(weights, True) if INTERPRETED else weights.to(tl.float8e4nv)
    weights = _operand_order(_operand(weights, INTERPRETED), ROWS, KEYS)
    tile = _operand(v.load([head * WIDTH, block * KEYS]), INTERPRETED)
    # Tensor cores keep 14 bits of a sum: sum each block separately, and add the sums in fp32.
    out = out * shrink[:, None] + tl.dot(weights, tile.T)
    return new_peak, total, out


@triton.jit
def fp8_attention_kernel(
    q, k, v, k_scales, channels, out, lse, scale, queries, keys, width, heads,
    q_stride_b, q_stride_s, q_stride_h, out_stride_b, out_stride_s, out_stride_h,
    NEGATE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    WHOLE: tl.constexpr, EDGE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Use grid (blocks of ROWS queries, H, B); k and v are descriptors of blocks of KEYS keys."""
    row, batch = tl.program_id(0) * ROWS, tl.program_id(2)
    head = batch * heads + tl.program_id(1)
    q += batch.to(tl.int64) * q_stride_b + tl.program_id(1).to(tl.int64) * q_stride_h
    out += batch.to(tl.int64) * out_stride_b + tl.program_id(1).to(tl.int64) * out_stride_h
    columns = tl.arange(0, WIDTH)
    channels += head.to(tl.int64) * WIDTH + columns
    many = tl.num_programs(2).to(tl.int64) * heads * WIDTH
    value = load_tile(q, batch, head, row, 0, queries, width, q_stride_s, ROWS, WIDTH, False)
    value = value.to(tl.float32)
    if NEGATE:
        value = -value
    shift = tl.sum(value * tl.load(channels)[None, :], 1) * scale
    peak = tl.max(magnitude_bits(value), 1).to(tl.float32, bitcast=True)
    factor = fp8_scale(peak)
    query = _operand(to_fp8(value * (1.0 / factor)[:, None], INTERPRETED), INTERPRETED)
    factor *= scale

    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    blocks = tl.cdiv(keys, KEYS)
    whole = keys // KEYS
    if WHOLE:
        # The maximum assures the compiler that the loop is entered, see `attend`.
        for block in tl.range(0, tl.maximum(whole, 1)):
            peak, total, sums = _block(
                query, k, v, k_scales, head, block, blocks, keys, factor, peak, total, sums,
                ROWS, KEYS, WIDTH, False, INTERPRETED,
            )  # fmt: skip
    # As the loop's last step, as in `attend`, Triton 3.9 would load the queries from shared memory
    # for every block: nothing else would keep them in registers.
    if EDGE:
        peak, total, sums = _block(
            query, k, v, k_scales, head, whole, blocks, keys, factor, peak, total, sums,
            ROWS, KEYS, WIDTH, True, INTERPRETED,
        )  # fmt: skip
    logs = (peak - 8.0 + tl.log2(total) + shift) * LOG_2
    rows = row + tl.arange(0, ROWS)
    tl.store(lse + head.to(tl.int64) * queries + rows, logs, mask=rows < queries)
    v_mean, v_scale = tl.load(channels + many), tl.load(channels + 2 * many)
    value = sums * (1.0 / total)[:, None] * v_scale[None, :] + v_mean[None, :]
    store_tile(out, value, row, 0, queries, width, out_stride_s, ROWS, WIDTH)
