"""Shared by the Triton attention kernels: tiles of a head, and the online softmax.

A tile is a range of rows of one head of [B, S, H, d], as two blocks of channels, MAIN and TAIL
wide, so that d = 384 = 256 + 128 wastes nothing. If one block covers d, TAIL is 0 and ``*_tail`` is
never read. Keys and values come from a 4-D ``TensorDescriptor`` (TMA: the copy engine moves the
tile and fills rows beyond S with 0), or from a pointer to the head with a row stride. Queries and
results are moved once per program, by plain 128-bit accesses: a tile of queries loaded by TMA would
reach the tensor cores through registers.

Scores are in units of log 2, so that their exponential is the hardware's exp2.
"""

import triton
import triton.language as tl

LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_tile(
    source, batch, head, row, column, end, width, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Load rows from ``row`` and channels from ``column`` on; 0 from ``end`` and ``width`` on."""
    if TMA:
        return source.load([batch, row, head, column]).reshape(ROWS, COLUMNS)
    else:
        rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        pointers = source + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        mask = (rows < end)[:, None] & (columns < width)[None, :]
        return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def store_tile(
    source, value, row, column, end, width, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store a tile to a pointer, rounded; writes nothing from ``end`` and ``width`` on."""
    rows, columns = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    pointers = source + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    mask = (rows < end)[:, None] & (columns < width)[None, :]
    tl.store(pointers, value.to(source.dtype.element_ty), mask=mask)


@triton.jit
def _block(
    q, q_tail, k, v, batch, head, row, keys, width, k_stride, v_stride, scale, bonus,
    peak, total, out, out_tail,
    KEYS: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr, RAGGED: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    tile = load_tile(k, batch, head, row, 0, keys, width, k_stride, KEYS, MAIN, TMA)
    scores = tl.dot(q, tile.T, input_precision="ieee")
    if TAIL:
        tile = load_tile(k, batch, head, row, MAIN, keys, width, k_stride, KEYS, TAIL, TMA)
        scores = tl.dot(q_tail, tile.T, scores, input_precision="ieee")
    if RAGGED:  # noqa: SIM102 (one is known at compile time, the other at run time)
        if row + KEYS >= keys:
            key = row + tl.arange(0, KEYS)
            if bonus is not None:
                scores += tl.where(key == keys - 1, bonus, 0.0)[None, :]
            scores = tl.where((key < keys)[None, :], scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 1)
    tile = load_tile(v, batch, head, row, 0, keys, width, v_stride, KEYS, MAIN, TMA)
    weights = weights.to(tile.dtype)
    out = tl.dot(weights, tile, out * shrink[:, None], input_precision="ieee")
    if TAIL:
        tile = load_tile(v, batch, head, row, MAIN, keys, width, v_stride, KEYS, TAIL, TMA)
        out_tail = tl.dot(weights, tile, out_tail * shrink[:, None], input_precision="ieee")
    return new_peak, total, out, out_tail


@triton.jit
def attend(
    q, q_tail, k, v, batch, head, keys, width, k_stride, v_stride, scale, bonus,
    ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCKS: tl.constexpr, RAGGED: tl.constexpr,
    MAIN: tl.constexpr, TAIL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Compute softmax over all keys, in BLOCKS blocks of KEYS: 0, 1, or 2 for several.

    RAGGED: the last block is not full, or has a bonus; its mask is a branch that other blocks skip.
    A separate block would be short, but nothing would hide the loads of its keys and then its
    values, and its code would duplicate the loop's.

    ``q`` [ROWS, MAIN] and ``q_tail`` [ROWS, TAIL] are queries. ``k`` and ``v`` are read by KEYS
    rows; ``batch`` and ``head`` locate them in descriptors, the strides give a pointer's next
    row. ``scale`` is that of the scores times log2(e), positive; ``bonus`` is added to the last
    key's score before scaling, None for none.

    Returns the peak of the scores and the sum of the weights [ROWS], and the weighted sums of the
    values [ROWS, MAIN] and [ROWS, TAIL]; without keys, -inf and zeros.
    """
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, MAIN], tl.float32)
    out_tail = tl.zeros([ROWS, TAIL], tl.float32) if TAIL else out
    if BLOCKS > 1:
        # The maximum assures the compiler that the loop is entered: a path around it would touch
        # accumulators of in-flight tensor-core instructions, and ptxas would serialise them.
        for row in tl.range(0, tl.maximum(keys, KEYS), KEYS):
            peak, total, out, out_tail = _block(
                q, q_tail, k, v, batch, head, row, keys, width, k_stride, v_stride, scale,
                bonus, peak, total, out, out_tail, KEYS, MAIN, TAIL, RAGGED, TMA,
            )  # fmt: skip
    elif BLOCKS == 1:
        peak, total, out, out_tail = _block(
            q, q_tail, k, v, batch, head, 0, keys, width, k_stride, v_stride, scale,
            bonus, peak, total, out, out_tail, KEYS, MAIN, TAIL, RAGGED, TMA,
        )  # fmt: skip
    return peak, total, out, out_tail
