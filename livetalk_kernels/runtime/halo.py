"""The sliced picture: pixels that a convolution needs beyond a slice come from neighbouring ranks.

Every output sees exactly the same pixels as without slicing, so results differ at most in the order
of summation; `slices` explains why. The published scheme, which decodes overlapping tiles
independently and crops them, is an approximation.

Layout legend: B batch, C channels, T frames, H rows, W columns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .comm import Communicator, Pending
from .mesh import Grid
from .slices import Axes, Box, Padding, Slices, extended, minus, seen, sent, strips

Convolve = Callable[[Tensor, Tensor | None, Padding], Tensor]
ROWS_COLUMNS: Axes = (-2, -1)


class Whole:
    """The picture is on one rank: nothing is exchanged and nothing copied.

    `HaloExchange` has the same methods for a sliced picture.
    """

    def take(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor:
        """Return this rank's slice, a view, of a tensor that all ranks hold.

        Args:
            x: Tensor whose rows and columns are a multiple of the latent's.
            axes: Its row and column axes.
        """
        return x

    def gather(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor:
        """Join the slices of all ranks, on all ranks.

        Args:
            x: This rank's slice, whose rows and columns are a multiple of the latent slice's.
            axes: Its row and column axes.
        """
        return x

    def collect(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor | None:
        """Join the slices of all ranks on rank 0; the other ranks get None and keep nothing.

        Args:
            x: As in `gather`.
            axes: As in `gather`.
        """
        return x

    def spread(self, std: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the slices' statistics into the picture's, bit-equal on all ranks.

        Args:
            std: Population standard deviations over the pixels of this rank's slice, any shape.
            mean: Means over the same pixels.

        Returns:
            Standard deviations and means over all pixels.
        """
        return std, mean

    def join(self, x_BCTHW: Tensor, padding: Padding) -> Tensor:
        """Return the slice with its halo, which `convolve` accepts as the history of a later call.

        Args:
            x_BCTHW: Slice.
            padding: Rows or columns beyond the top, bottom, left and right.
        """
        return x_BCTHW

    def convolve(
        self,
        run: Convolve,
        x_BCTHW: Tensor,
        history_BCTHW: Tensor | None,
        *,
        taps: Axes,
        stride: Axes,
        padding: Padding,
        remember: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Convolve a slice as part of its picture.

        Args:
            run: (x, history, padding) -> a fresh y, the convolution with zero padding.
            x_BCTHW: Slice of the new frames.
            history_BCTHW: Preceding frames, as returned by an earlier call or by `join`.
            taps: Rows and columns of the kernel.
            stride: Strides.
            padding: Zeros around the whole picture.
            remember: Number of last frames of x that the caller will need in later calls.

        Returns:
            The slice of y, and at least the last ``remember`` frames of x with its halo.
        """
        return run(x_BCTHW, history_BCTHW, padding), x_BCTHW


WHOLE = Whole()


class HaloExchange(Whole):
    """One rank's part in a picture that is sliced among the ranks of a communicator.

    All ranks call the same methods in the same order. Traffic is counted as ``halo``, ``gather``,
    ``collect`` and ``statistics``.

    Attributes:
        slices: The assignment of pixels to ranks.
    """

    def __init__(
        self,
        communicator: Communicator,
        grid: Grid,
        size: tuple[int, int],
        *,
        overlap: bool = False,
    ) -> None:
        """Slice a picture.

        Args:
            communicator: As many ranks as the grid.
            grid: Ranks in rows and columns.
            size: Rows and columns of the latent.
            overlap: Convolve the slice while its halo is in flight, and its borders afterwards.
                Otherwise wait for the halo and convolve once: less work, since every call rereads
                all weights, and faster with fast links.
        """
        assert communicator.size == grid.world
        self.slices = Slices(grid=grid, size=size)
        self._comm, self._rank, self._overlap = communicator, communicator.rank, overlap
        self._neighbours = list(self.slices.neighbours(self._rank))
        self._shares: Tensor | None = None  # each rank's fraction of all pixels

    def take(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor:
        """See `Whole.take`."""
        factor = self.slices.factor((x.shape[axes[0]], x.shape[axes[1]]))
        return self._own(x, self._rank, factor, axes)

    def gather(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor:
        """See `Whole.gather`."""
        shapes = self._shapes(x, axes)
        sizes = [shape.numel() for shape in shapes]
        flat = self._comm.all_gather(x.contiguous().view(-1), sizes, kind="gather").split(sizes)
        return self._assemble([part.view(s) for part, s in zip(flat, shapes, strict=True)], axes)

    def collect(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor | None:
        """See `Whole.collect`."""
        x = x.contiguous()
        if self._rank:
            self._comm.exchange([(0, x)], [], kind="collect").wait()
            return None
        parts = [x, *(x.new_empty(shape) for shape in self._shapes(x, axes)[1:])]
        self._comm.exchange([], list(enumerate(parts))[1:], kind="collect").wait()
        return self._assemble(parts, axes)

    def spread(self, std: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """See `Whole.spread`.

        Of n_r pixels with mean m_r and variance v_r on rank r: m = sum n_r * m_r / n and
        v = sum n_r * (v_r + (m_r - m)^2) / n (Chan, Golub and LeVeque 1979), in fp64.
        """
        ranks = self._comm.size
        own = torch.stack((std, mean))[None]
        everyone = self._comm.all_gather(own, [1] * ranks, kind="statistics")
        stds, means = everyone.double().unbind(1)
        if self._shares is None:  # once: a copy from the host waits for the GPU
            pixels = stds.new_tensor([box.pixels for box in self.slices.boxes])
            self._shares = pixels / pixels.sum()
        share = self._shares.view(-1, *[1] * std.ndim)
        joint = (share * means).sum(0)
        variance = (share * (stds.square() + (means - joint).square())).sum(0)
        return variance.sqrt().to(std.dtype), joint.to(mean.dtype)

    def join(self, x_BCTHW: Tensor, padding: Padding) -> Tensor:
        """See `Whole.join`."""
        return self._exchange(x_BCTHW, padding).join()

    def convolve(
        self,
        run: Convolve,
        x_BCTHW: Tensor,
        history_BCTHW: Tensor | None,
        *,
        taps: Axes,
        stride: Axes,
        padding: Padding,
        remember: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See `Whole.convolve`."""
        border = self._exchange(x_BCTHW, padding)
        lengths, halo = (x_BCTHW.shape[3], x_BCTHW.shape[4]), border.halo
        if self._overlap:
            found = strips(lengths, halo, taps=taps, stride=stride, padding=padding)
            if found:
                y = run(x_BCTHW, border.cut(history_BCTHW, border.inside), padding)
                for axis, outputs, box, zeros in found:  # where y used zeros for the halo
                    part = run(border.window(box), border.cut(history_BCTHW, box), zeros)
                    y.narrow(axis, outputs.start, len(outputs)).copy_(part)
                return y, border.join(remember)
        joined = border.join()
        return run(joined, history_BCTHW, minus(padding, halo)), joined

    def _exchange(self, x_BCTHW: Tensor, padding: Padding) -> "_Border":
        """Start sending what the neighbours need of x, and receiving what it needs of theirs."""
        batch, channels, frames, height, width = x_BCTHW.shape
        lengths = height, width
        inside = extended(lengths, (0, 0, 0, 0))
        x_BTHWC = x_BCTHW.permute(0, 2, 3, 4, 1)
        send, receive, pieces = [], [], []
        for way, rank in self._neighbours:
            part = sent(way, padding, lengths).view(x_BTHWC, inside, (2, 3))
            send.append((rank, part.contiguous()))
            box = seen(way, padding, lengths)
            part = x_BCTHW.new_empty(batch, frames, *map(len, box), channels)
            receive.append((rank, part))
            pieces.append((box, part.permute(0, 4, 1, 2, 3)))
        pending = self._comm.exchange(send, receive, kind="halo")
        return _Border(x_BCTHW, self.slices.halo(self._rank, padding), pieces, pending)

    def _own(self, x: Tensor, rank: int, factor: int, axes: Axes) -> Tensor:
        """Slice a rank's part from a tensor of the whole picture."""
        whole = extended((x.shape[axes[0]], x.shape[axes[1]]), (0, 0, 0, 0))
        return self.slices.box(rank, factor).view(x, whole, axes)

    def _shapes(self, x: Tensor, axes: Axes) -> list[torch.Size]:
        """Compute the shapes of all ranks' slices that correspond to x."""
        factor = self.slices.factor((x.shape[axes[0]], x.shape[axes[1]]), self._rank)
        shapes = []
        for rank in range(self._comm.size):
            shape = list(x.shape)
            shape[axes[0]], shape[axes[1]] = map(len, self.slices.box(rank, factor))
            shapes.append(torch.Size(shape))
        return shapes

    def _assemble(self, parts: Sequence[Tensor], axes: Axes) -> Tensor:
        """Assemble the picture from all ranks' slices."""
        factor = self.slices.factor((parts[0].shape[axes[0]], parts[0].shape[axes[1]]), 0)
        shape = list(parts[0].shape)
        shape[axes[0]], shape[axes[1]] = (length * factor for length in self.slices.size)
        whole = parts[0].new_empty(shape)
        for rank, part in enumerate(parts):
            self._own(whole, rank, factor, axes).copy_(part)
        return whole


class _Border:
    """A slice and, once received, the neighbours' pixels around it.

    Boxes are relative to the first row and column of the slice.

    Attributes:
        halo: Rows or columns at the top, bottom, left and right that neighbours have.
        inside: The slice.
        outside: The slice with its halo.
    """

    def __init__(
        self, x_BCTHW: Tensor, halo: Padding, pieces: list[tuple[Box, Tensor]], pending: Pending
    ) -> None:
        """Store the slice and ``pieces``, the tensors from the neighbours."""
        self._x, self._pieces, self._pending = x_BCTHW, pieces, pending
        self.halo = halo
        lengths = x_BCTHW.shape[3], x_BCTHW.shape[4]
        self.inside, self.outside = extended(lengths, (0, 0, 0, 0)), extended(lengths, halo)

    def join(self, frames: int | None = None) -> Tensor:
        """Return all or the last frames with the halo; x itself if there is no halo."""
        if any(self.halo):
            return self.window(self.outside, frames)
        self._pending.wait()
        return self._x

    def window(self, box: Box, frames: int | None = None) -> Tensor:
        """Copy these pixels, of all or the last frames, to a fresh channels-last tensor."""
        count = self._x.shape[2]
        first = 0 if frames is None else max(0, count - frames)
        batch, channels = self._x.shape[:2]
        out = torch.empty(
            (batch, channels, count - first, *map(len, box)),
            dtype=self._x.dtype, device=self._x.device, memory_format=torch.channels_last_3d,
        )  # fmt: skip

        def place(where: Box, piece: Tensor) -> None:
            common = box.common(where)
            if common.pixels:
                target = common.view(out, box)
                target.copy_(common.view(piece[:, :, first:], where))

        place(self.inside, self._x)  # while the others are in flight
        self._pending.wait()
        for where, piece in self._pieces:
            place(where, piece)
        return out

    def cut(self, joined_BCTHW: Tensor | None, box: Box) -> Tensor | None:
        """Cut the same pixels from frames that were joined before."""
        if joined_BCTHW is None:
            return None
        view = box.view(joined_BCTHW, self.outside)
        return view.contiguous(memory_format=torch.channels_last_3d)
