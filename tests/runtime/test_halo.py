"""Slices and their halos: arithmetic, any convolution exactly, history that is sent once."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_kernels.runtime.halo import WHOLE, HaloExchange
from livetalk_kernels.runtime.mesh import Grid
from livetalk_kernels.runtime.slices import Padding, Slices, strips
from livetalk_kernels.testing.processes import run_ranks

SIZE = (5, 7)  # of the latent
# taps, stride, padding, size of the input to the latent's
CONVOLUTIONS = {
    "same": ((3, 3), (1, 1), (1, 1, 1, 1), 1),
    "folded upsampling": ((2, 2), (1, 1), (1, 1, 1, 1), 1),
    "downsampling": ((3, 3), (2, 2), (0, 1, 0, 1), 4),
    "wide": ((5, 7), (1, 1), (2, 2, 3, 3), 4),
    "rows only": ((3, 1), (1, 1), (1, 1, 0, 0), 2),
    "uneven steps": ((4, 3), (2, 1), (2, 1, 1, 1), 2),
    "one pixel": ((1, 1), (1, 1), (0, 0, 0, 0), 1),
}


def whole_numbers(*shape: int) -> Tensor:
    """Sums and products of these are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(0)).float()


def convolution(weight: Tensor, stride: tuple[int, int], called: list[Padding]):
    """Over two frames of time; missing history is zeros."""

    def run(x: Tensor, history: Tensor | None, padding: Padding) -> Tensor:
        called.append(padding)
        top, bottom, left, right = padding
        frames = x if history is None else torch.cat([history, x], dim=2)
        zeros = int(history is None)
        frames = functional.pad(frames, (left, right, top, bottom, zeros, 0))
        return functional.conv3d(frames, weight, stride=(1, *stride))

    return run


def convolve_slices(comm: Communicator, grids: list[str]) -> dict[str, list[bool]]:
    """Every convolution on two pieces of a stream, overlapped or not: slices of the whole?"""
    found = {}
    for grid, overlap, (name, spec) in itertools.product(
        grids, (False, True), CONVOLUTIONS.items()
    ):
        taps, stride, padding, factor = spec
        halo = HaloExchange(comm, Grid.parse(grid), SIZE, overlap=overlap)
        x = whole_numbers(2, 3, 4, *(factor * length for length in SIZE))
        called: list[Padding] = []
        run = convolution(whole_numbers(2, 3, 2, *taps), stride, called)
        expected = run(x, None, padding)
        own, parts, history = halo.take(x), [], None
        comm.traffic.clear()
        for piece in own.split([1, 3], dim=2):
            options = {"taps": taps, "stride": stride, "padding": padding, "remember": 1}
            y, seen = halo.convolve(run, piece, history, **options)
            history = seen[:, :, -1:].clone()
            parts.append(y)
        y = torch.cat(parts, dim=2)
        pixels = halo.slices.halo_pixels(comm.rank, padding, factor)
        right = [comm.traffic.bytes["halo"] == 4 * 2 * 3 * 4 * pixels]  # each frame once
        # The first output of a slice is the one of the whole at its first pixel.
        rows, columns = (part.start // s for part, s in zip(
            halo.slices.box(comm.rank, factor), stride, strict=True
        ))  # fmt: skip
        height, width = y.shape[3:]
        right.append(torch.equal(y, expected[..., rows : rows + height, columns : columns + width]))
        found[f"{grid} {overlap} {name}"] = right
    return found


@pytest.mark.parametrize(
    ("world", "grids"), [(3, ["3x1", "1x3"]), (4, ["2x2", "4x1"]), (6, ["3x2"]), (5, ["5x1"])]
)
def test_any_convolution_sees_beyond_its_slice(world: int, grids: list[str]) -> None:
    for rank, found in enumerate(run_ranks(convolve_slices, world, grids)):
        assert len(found) == 2 * len(grids) * len(CONVOLUTIONS)
        wrong = {name: right for name, right in found.items() if not all(right)}
        assert not wrong, (rank, wrong)


def move(comm: Communicator) -> list[bool]:
    """Take, gather, collect and join, of tensors in any order of axes and of any dtype."""
    halo = HaloExchange(comm, Grid.parse("2x2"), SIZE)
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        x = whole_numbers(2, 5 * 4, 7 * 4, 3).abs().to(dtype)
        own = halo.take(x, axes=(1, 2))
        found.append(torch.equal(halo.gather(own, axes=(1, 2)), x))
        collected = halo.collect(own, axes=(1, 2))
        found.append(
            collected is None if comm.rank else collected is not None and torch.equal(collected, x)
        )
    x = whole_numbers(1, 2, 3, *SIZE)
    rows, columns = halo.slices.box(comm.rank)
    joined = halo.join(halo.take(x), (1, 0, 0, 2))  # a row above, two columns to the right
    expected = x[..., max(rows.start - 1, 0) : rows.stop, columns.start : columns.stop + 2]
    found.append(torch.equal(joined, expected))
    return found


def test_slices_are_taken_and_put_together() -> None:
    for found in run_ranks(move, 4):
        assert all(found), found


def test_whole_pictures_are_not_touched() -> None:
    x = whole_numbers(1, 2, 3, *SIZE)
    assert WHOLE.take(x) is WHOLE.gather(x) is WHOLE.collect(x) is WHOLE.join(x, (1, 1, 1, 1)) is x
    calls: list[Padding] = []
    run = convolution(whole_numbers(2, 2, 2, 3, 3), (1, 1), calls)
    y, seen = WHOLE.convolve(run, x, None, taps=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    assert seen is x and calls == [(1, 1, 1, 1)] and y.shape == x.shape
    std, mean = torch.ones(1), torch.zeros(1)
    assert WHOLE.spread(std, mean) == (std, mean)
    alone = HaloExchange(LocalCommunicator(), Grid.parse("1x1"), SIZE)
    assert torch.equal(alone.gather(x), x) and torch.equal(alone.collect(x), x)
    y_alone, _ = alone.convolve(run, x, None, taps=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    assert torch.equal(y_alone, y)


# Arithmetic


@pytest.mark.parametrize("grid", ["1x1", "2x3", "5x1", "1x7", "5x7"])
def test_slices_cover_the_picture(grid: str) -> None:
    slices = Slices(grid=Grid.parse(grid), size=SIZE)
    seen = torch.zeros(2 * SIZE[0], 2 * SIZE[1])
    for rank in range(slices.grid.world):
        rows, columns = slices.box(rank, 2)
        assert rows and columns
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
        assert slices.factor((len(rows), len(columns)), rank) == 2
    assert seen.eq(1).all() and slices.factor(seen.shape) == 2
    with pytest.raises(AssertionError, match="no multiple"):
        slices.factor((11, 14))


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 0, 1), (2, 1, 0, 3)])
@pytest.mark.parametrize("grid", ["1x1", "4x1", "1x3", "3x2"])
def test_traffic_of_all_ranks(grid: str, padding: Padding) -> None:
    slices = Slices(grid=Grid.parse(grid), size=SIZE)
    rows, columns = slices.grid.rows - 1, slices.grid.columns - 1
    vertical, horizontal = sum(padding[:2]), sum(padding[2:])
    (height, width), factor = SIZE, 4
    expected = (
        rows * vertical * width * factor
        + columns * horizontal * height * factor
        + rows * columns * vertical * horizontal
    )
    ranks = range(slices.grid.world)
    assert sum(slices.halo_pixels(rank, padding, factor) for rank in ranks) == expected


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("halo", list(itertools.product((False, True), repeat=4)))
def test_strips_are_the_outputs_that_see_a_halo(name: str, halo: tuple[bool, ...]) -> None:
    taps, stride, padding, _ = CONVOLUTIONS[name]
    lengths = (8, 12)
    have = tuple(p * h for p, h in zip(padding, halo, strict=True))
    found = strips(lengths, have, taps=taps, stride=stride, padding=padding)
    for axis in (0, 1):
        length, before, after = lengths[axis], *padding[2 * axis : 2 * axis + 2]
        expected = set()
        count = (before + length + after - taps[axis]) // stride[axis] + 1
        for output in range(count):
            start = output * stride[axis] - before
            if (start < 0 and have[2 * axis]) or (
                start + taps[axis] > length and have[2 * axis + 1]
            ):
                expected.add(output)
        got = [output for strip in found if strip.axis == axis - 2 for output in strip.outputs]
        assert sorted(got) == sorted(expected)


def test_a_slice_without_interior_has_no_strips() -> None:
    assert not strips((1, 8), (1, 1, 0, 0), taps=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
