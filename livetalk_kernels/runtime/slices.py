"""A picture divided among ranks: who has which rows and columns, and who sees whose.

Pure arithmetic, the same on every rank. Let an axis be padded by p pixels in front and q behind,
and convolved with any taps at stride s: output i sees pixel s * i - p and what follows. For a slice
[a, b) of it, a and b multiples of s, extended by the p pixels before it and the q behind it, output
i sees a + s * i - p and what follows: it is output a / s + i of the whole. So the halo of a slice
is the padding of the convolution, be it 3 x 3 of stride 1, the 2 x 2 taps of a folded upsampling,
or a strided one that is padded at one end only; where the picture ends the padding stays zeros.
Two axes are independent, and both together give the corners.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from .mesh import Grid, shares, starts

Axes = tuple[int, int]  # rows, columns
Padding = tuple[int, int, int, int]  # top, bottom, left, right


class Box(NamedTuple):
    """A rectangle of pixels.

    Attributes:
        rows: Its rows.
        columns: Its columns.
    """

    rows: range
    columns: range

    @property
    def pixels(self) -> int:
        """How many."""
        return len(self.rows) * len(self.columns)

    def common(self, other: "Box") -> "Box":
        """What lies in both; without rows or columns where nothing does."""
        rows, columns = (
            range(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self, other, strict=True)
        )
        return Box(rows, columns)

    def view(self, x: Tensor, within: "Box", axes: Axes = (-2, -1)) -> Tensor:
        """This part of a tensor whose ``axes`` are the rows and columns of ``within``."""
        for axis, own, outer in zip(axes, self, within, strict=True):
            x = x.narrow(axis, own.start - outer.start, len(own))
        return x


@dataclass(frozen=True, kw_only=True)
class Slices:
    """How a picture is divided.

    Attributes:
        grid: Ranks.
        size: Rows and columns of the latent; every rank has at least one of both. Slices of
            larger tensors are those of the latent times a factor.
    """

    grid: Grid
    size: Axes

    def __post_init__(self) -> None:
        """Check what `Grid.choose` sees to."""
        assert self.grid.rows <= self.size[0] and self.grid.columns <= self.size[1]

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """Every rank's slice of the latent."""
        parts = []
        for total, count in zip(self.size, (self.grid.rows, self.grid.columns), strict=True):
            first = starts(shares(total, count))
            parts.append([range(first[i], first[i + 1]) for i in range(count)])
        return tuple(Box(rows, columns) for rows in parts[0] for columns in parts[1])

    def box(self, rank: int, factor: int = 1) -> Box:
        """A rank's slice of a tensor ``factor`` times as large as the latent."""
        rows, columns = (
            range(part.start * factor, part.stop * factor) for part in self.boxes[rank]
        )
        return Box(rows, columns)

    def factor(self, lengths: Axes, rank: int | None = None) -> int:
        """How much larger than the latent, or a rank's slice of it, rows and columns are."""
        base = self.size if rank is None else (len(self.boxes[rank][0]), len(self.boxes[rank][1]))
        factor = lengths[0] // base[0]
        assert lengths == (base[0] * factor, base[1] * factor), "no multiple of the latent"
        return factor

    def neighbours(self, rank: int) -> Iterator[tuple[Axes, int]]:
        """((-1, 0, 1 from above to below, the same from left to right), rank) of all around."""
        row, column = self.grid.position(rank)
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                other = self.grid.rank(row + down, column + across)
                if other is not None and (down or across):
                    yield (down, across), other

    def halo(self, rank: int, padding: Padding) -> Padding:
        """The part of a padding that neighbours have; the rest is zeros outside the picture."""
        row, column = self.grid.position(rank)
        top, bottom, left, right = padding
        return (
            top if row else 0,
            bottom if row + 1 < self.grid.rows else 0,
            left if column else 0,
            right if column + 1 < self.grid.columns else 0,
        )

    def halo_pixels(self, rank: int, padding: Padding, factor: int = 1) -> int:
        """Pixels of each frame and channel that a rank sends for one convolution.

        A slice of h x w pixels with neighbours all around sends (top + bottom) * w to those below
        and above, (left + right) * h to those beside, (top + bottom) * (left + right) to those at
        its corners. All ranks of an R x C grid over H x W pixels together send
        (R - 1) * (top + bottom) * W + (C - 1) * (left + right) * H
        + (R - 1) * (C - 1) * (top + bottom) * (left + right).

        Args:
            rank: The sender.
            padding: Of the convolution.
            factor: Of its input to the latent.
        """
        lengths = self._lengths(rank, factor)
        return sum(sent(way, padding, lengths).pixels for way, _ in self.neighbours(rank))

    def _lengths(self, rank: int, factor: int) -> Axes:
        rows, columns = self.boxes[rank]
        return len(rows) * factor, len(columns) * factor


def seen(way: Axes, padding: Padding, lengths: Axes) -> Box:
    """What a convolution sees of the neighbour in a direction, counted from the own first pixel.

    Args:
        way: (-1 for above, 0, 1 for below; -1 for left, 0, 1 for right).
        padding: Of the convolution.
        lengths: Rows and columns of the own slice.
    """
    rows, columns = (
        {-1: range(-before, 0), 0: range(length), 1: range(length, length + after)}[step]
        for step, before, after, length in zip(
            way, padding[::2], padding[1::2], lengths, strict=True
        )
    )
    return Box(rows, columns)


def sent(way: Axes, padding: Padding, lengths: Axes) -> Box:
    """What of the own slice the neighbour in a direction sees; arguments as in `seen`.

    The one below sees as many rows above itself as are padded at the top.
    """
    rows, columns = (
        {-1: range(after), 0: range(length), 1: range(length - before, length)}[step]
        for step, before, after, length in zip(
            way, padding[::2], padding[1::2], lengths, strict=True
        )
    )
    return Box(rows, columns)


class Strip(NamedTuple):
    """Outputs of a convolution along one axis that see the halo of a slice.

    Attributes:
        axis: -2 for rows, -1 for columns; along the other one these are all outputs.
        outputs: Which.
        box: Pixels that they see, of the slice and its halo.
        zeros: What is padded around those.
    """

    axis: int
    outputs: range
    box: Box
    zeros: Padding


def strips(
    lengths: Axes, halo: Padding, *, taps: Axes, stride: Axes, padding: Padding
) -> list[Strip]:
    """The outputs that see the halo.

    Args:
        lengths: Rows and columns of the slice.
        halo: Of the slice, see `Slices.halo`.
        taps: Of the convolution.
        stride: Its steps.
        padding: Its zeros around the whole picture.

    Returns:
        At most one strip at each side; none if nothing would be left between them.
    """
    outer = extended(lengths, halo)
    zeros = minus(padding, halo)
    found = []
    for axis in (0, 1):
        before, after = padding[2 * axis : 2 * axis + 2]
        step, length = stride[axis], lengths[axis]
        count = (before + length + after - taps[axis]) // step + 1
        first = -(-before // step) if halo[2 * axis] else 0
        last = (before + length - taps[axis]) // step + 1 if halo[2 * axis + 1] else count
        if first >= last:
            return []
        for outputs in (range(first), range(last, count)):
            if not outputs:
                continue
            start, stop = outputs[0] * step - before, outputs[-1] * step - before + taps[axis]
            inputs = range(start, stop)
            if axis == 0:
                found.append(Strip(-2, outputs, Box(inputs, outer.columns), (0, 0, *zeros[2:])))
            else:
                found.append(Strip(-1, outputs, Box(outer.rows, inputs), (*zeros[:2], 0, 0)))
    return found


def extended(lengths: Axes, halo: Padding) -> Box:
    """A slice and its halo, counted from the slice's first row and column."""
    top, bottom, left, right = halo
    return Box(range(-top, lengths[0] + bottom), range(-left, lengths[1] + right))


def minus(padding: Padding, halo: Padding) -> Padding:
    """Zeros that remain where a halo takes the place of the others."""
    top, bottom, left, right = (p - h for p, h in zip(padding, halo, strict=True))
    return top, bottom, left, right
