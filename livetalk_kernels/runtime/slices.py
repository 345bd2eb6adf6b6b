"""A picture partitioned among ranks: who has which rows and columns, and who needs whose.

Pure arithmetic, the same on every rank. Let an axis be padded by p pixels in front and q behind,
and convolved with any kernel at stride s: output i reads pixels from s * i - p on. For a slice
[a, b) of it, a and b multiples of s, extended by the p pixels before and the q behind it, output i
reads from a + s * i - p on: it is output a / s + i of the whole. So the halo of a slice is the
padding of the convolution, whether 3 x 3 with stride 1, the 2 x 2 taps of a folded upsampling, or
strided and padded at one end only; at the picture's border the padding remains zeros. The two axes
are independent, and together they give the corners.
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
        """Number of pixels."""
        return len(self.rows) * len(self.columns)

    def common(self, other: "Box") -> "Box":
        """Intersect two boxes; the result is empty if they are disjoint."""
        rows, columns = (
            range(max(a.start, b.start), min(a.stop, b.stop))
            for a, b in zip(self, other, strict=True)
        )
        return Box(rows, columns)

    def view(self, x: Tensor, within: "Box", axes: Axes = (-2, -1)) -> Tensor:
        """View this part of a tensor whose ``axes`` are the rows and columns of ``within``."""
        for axis, own, outer in zip(axes, self, within, strict=True):
            x = x.narrow(axis, own.start - outer.start, len(own))
        return x


@dataclass(frozen=True, kw_only=True)
class Slices:
    """How a picture is partitioned.

    Attributes:
        grid: Grid of ranks.
        size: Rows and columns of the latent; every rank has at least one of each. Slices of
            larger tensors are the latent's times a factor.
    """

    grid: Grid
    size: Axes

    def __post_init__(self) -> None:
        """Check what `Grid.choose` guarantees."""
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
        """Return a rank's slice of a tensor ``factor`` times as large as the latent."""
        rows, columns = (
            range(part.start * factor, part.stop * factor) for part in self.boxes[rank]
        )
        return Box(rows, columns)

    def factor(self, lengths: Axes, rank: int | None = None) -> int:
        """Compute the ratio of rows and columns to the latent's, or to a rank's slice of it."""
        base = self.size if rank is None else (len(self.boxes[rank][0]), len(self.boxes[rank][1]))
        factor = lengths[0] // base[0]
        assert lengths == (base[0] * factor, base[1] * factor), "no multiple of the latent"
        return factor

    def neighbours(self, rank: int) -> Iterator[tuple[Axes, int]]:
        """Yield ((-1, 0, 1 from above to below, the same left to right), rank) of neighbours."""
        row, column = self.grid.position(rank)
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                other = self.grid.rank(row + down, column + across)
                if other is not None and (down or across):
                    yield (down, across), other

    def halo(self, rank: int, padding: Padding) -> Padding:
        """Return the part of a padding that neighbours have; the rest is zeros outside."""
        row, column = self.grid.position(rank)
        top, bottom, left, right = padding
        return (
            top if row else 0,
            bottom if row + 1 < self.grid.rows else 0,
            left if column else 0,
            right if column + 1 < self.grid.columns else 0,
        )

    def halo_pixels(self, rank: int, padding: Padding, factor: int = 1) -> int:
        """Count the pixels per frame and channel that a rank sends for one convolution.

        A slice of h x w pixels with neighbours all around sends (top + bottom) * w to those below
        and above, (left + right) * h to those left and right, (top + bottom) * (left + right) to
        those at its corners. All ranks of an R x C grid over H x W pixels together send (R - 1) *
        (top + bottom) * W + (C - 1) * (left + right) * H + (R - 1) * (C - 1) * (top + bottom) *
        (left + right).

        Args:
            rank: The sender.
            padding: Padding of the convolution.
            factor: Size of its input relative to the latent.
        """
        lengths = self._lengths(rank, factor)
        return sum(sent(way, padding, lengths).pixels for way, _ in self.neighbours(rank))

    def _lengths(self, rank: int, factor: int) -> Axes:
        rows, columns = self.boxes[rank]
        return len(rows) * factor, len(columns) * factor


def seen(way: Axes, padding: Padding, lengths: Axes) -> Box:
    """Locate what a convolution needs from the neighbour in a direction, relative to the own slice.

    Args:
        way: (-1 for above, 0, 1 for below; -1 for left, 0, 1 for right).
        padding: Padding of the convolution.
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
    """Locate what the neighbour in a direction needs of the own slice; arguments as in `seen`.

    The one below needs as many rows above itself as are padded at the top.
    """
    rows, columns = (
        {-1: range(after), 0: range(length), 1: range(length - before, length)}[step]
        for step, before, after, length in zip(
            way, padding[::2], padding[1::2], lengths, strict=True
        )
    )
    return Box(rows, columns)


class Strip(NamedTuple):
    """Outputs of a convolution along one axis that depend on the halo of a slice.

    Attributes:
        axis: -2 for rows, -1 for columns; along the other axis these are all outputs.
        outputs: Range of outputs.
        box: Pixels that they read, of the slice and its halo.
        zeros: Padding around those.
    """

    axis: int
    outputs: range
    box: Box
    zeros: Padding


def strips(
    lengths: Axes, halo: Padding, *, taps: Axes, stride: Axes, padding: Padding
) -> list[Strip]:
    """List the outputs that depend on the halo.

    Args:
        lengths: Rows and columns of the slice.
        halo: Halo of the slice, see `Slices.halo`.
        taps: Rows and columns of the kernel.
        stride: Strides.
        padding: Zeros around the whole picture.

    Returns:
        At most one strip per side; none if nothing would remain between them.
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
    """Return a slice with its halo, relative to the slice's first row and column."""
    top, bottom, left, right = halo
    return Box(range(-top, lengths[0] + bottom), range(-left, lengths[1] + right))


def minus(padding: Padding, halo: Padding) -> Padding:
    """Compute the zeros that remain after a halo replaces the others."""
    top, bottom, left, right = (p - h for p, h in zip(padding, halo, strict=True))
    return top, bottom, left, right
