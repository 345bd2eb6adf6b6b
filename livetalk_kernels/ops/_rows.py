"""Distributes rows among programs, blocks and warps, for Triton kernels that work on rows."""

from typing import Any, NamedTuple

from torch import Tensor

from ..backends.triton_launch import interpreted, split_width

ACCESS = 32 * 16  # bytes that a warp moves at once, 16 per thread
ACCESSES = 4  # per thread that holds parts of several short rows
MAX_WARPS = 8
PROGRAMS = 512  # enough to keep a GPU busy, a few for each of its 132 processors
INTERPRETED_ELEMENTS = 1 << 17  # per block in the interpreter, where a program costs many ms


class RowPlan(NamedTuple):
    """Constants and launch of a kernel on rows; see ``_triton.py``."""

    constants: dict[str, Any]
    programs: int
    warps: int


def plan_rows(rows: int, width: int, itemsize: int) -> RowPlan:
    """Distribute rows so that every thread moves 16 bytes at once, in the shorter block too.

    Args:
        rows: Number of rows, at least 1.
        width: Length of a row.
        itemsize: Bytes per element.
    """
    main, tail = split_width(width)
    shared = tail if tail * 8 >= main else main  # a shorter tail would leave too few warps
    warps = max(1, min(MAX_WARPS, shared * itemsize // ACCESS))
    count = 1
    if interpreted():
        count = interpreted_count(rows, main)
    elif warps == 1:  # short rows
        warps = 4
        most = warps * ACCESSES * ACCESS // (power_of_two(width) * itemsize)
        count = max(warps, min(most, power_of_two(rows) // PROGRAMS))
    constants = {"ROWS": count, "MAIN": main, "TAIL": tail, "EVEN": main + tail == width}
    return RowPlan(constants, -(-rows // count), warps)


def interpreted_count(items: int, size: int) -> int:
    """Choose how many items of ``size`` elements an interpreted program takes, a power of two."""
    return min(power_of_two(items), max(1, INTERPRETED_ELEMENTS // power_of_two(size)))


def power_of_two(count: int) -> int:
    """Round ``count``, at least 1, up to a power of two."""
    return 1 << (count - 1).bit_length()


def channel_blocks(channels: int) -> tuple[int, int]:
    """Cover a pixel's channels with 1 or 3 blocks of a power of two; return count and length.

    96, 192 and 384 are three equal blocks with the same thread layout; other widths get one block,
    with some to spare.
    """
    third = channels // 3
    if channels == 3 * third and third == power_of_two(max(third, 1)):
        return 3, third
    return 1, power_of_two(channels)


def pair_rows(plan: RowPlan, rows: int) -> RowPlan:
    """Give programs of one long row a second one if there are enough: constant ``PAIR``.

    The interpreter's programs are halved instead, so that it runs the same code.
    """
    count, programs = plan.constants["ROWS"], plan.programs
    if interpreted():
        pair, count = count > 1, -(-count // 2)
    else:
        pair = count == 1 and rows >= 2 * PROGRAMS
        programs = -(-rows // 2) if pair else programs
    return RowPlan({**plan.constants, "ROWS": count, "PAIR": pair}, programs, plan.warps)


def as_rows(x: Tensor) -> Tensor:
    """View [..., D] as [rows, D]; copies only if the leading dimensions do not share a stride."""
    return x.reshape(-1, x.shape[-1])
