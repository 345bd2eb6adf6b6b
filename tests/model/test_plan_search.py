"""Splits: what is tried, what is refused, what ranks first."""

from dataclasses import replace

import pytest

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS, Quantity
from livetalk_kernels.runtime.mesh import Grid
from livetalk_model.config import get_preset
from livetalk_model.plan.forecast import Job
from livetalk_model.plan.machine import GpuMachine, Shares
from livetalk_model.plan.search import (
    Choice,
    candidates,
    default_nodes,
    fewest_nodes,
    scaling,
    search,
)

SHARES = Shares(matmul=0.9, attention=0.9, convolution=0.3, memory=0.7, link=0.7)
MACHINE = GpuMachine(gpu=GPUS["h800"], shares=SHARES)
JOB = Job.of(get_preset("small"), (768, 448))  # 12 heads


def splits(world, nodes=1, **fixed):
    return [
        (job.fp8, layout.mesh.ulysses, layout.mesh.ring, str(layout.grid))
        for job, layout in candidates(JOB, world, nodes, Choice(**fixed))
    ]


def test_everything_that_runs_is_tried():
    found = splits(4)
    assert len(found) == len(set(found)) == 2 * 3 * 3
    assert {(u, r) for _, u, r, _ in found} == {(4, 1), (2, 2), (1, 4)}
    assert {grid for *_, grid in found} == {"4x1", "2x2", "1x4"}
    assert {(u, r) for _, u, r, _ in splits(8)} == {(4, 2), (2, 4), (1, 8)}  # 8 does not divide 12


def test_what_is_fixed_stays():
    assert splits(4, ulysses=2, fp8=True, grid=Grid(rows=4, columns=1)) == [(True, 2, 2, "4x1")]
    assert {(u, r) for _, u, r, _ in splits(6, ring=3)} == {(2, 3)}
    assert {(u, r) for _, u, r, _ in splits(8, ulysses=8)} == {(8, 1)}  # uneven, but it runs


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"ulysses": 3}, "--ulysses 3"),
        ({"ulysses": 2, "ring": 3}, "--ulysses 2 --ring 3"),
        ({"ulysses": 16, "ring": 1}, "12 heads|16"),
        ({"grid": Grid(rows=3, columns=2)}, "--vae-grid 3x2"),
        ({"ulysses": 0}, "--ulysses"),
    ],
)
def test_what_the_runtime_refuses(fixed, message):
    with pytest.raises(UserError, match=message):
        splits(8, **fixed)


def test_nodes():
    assert [fewest_nodes(n) for n in (1, 8, 11, 16)] == [1, 1, None, 2]
    assert [default_nodes(n) for n in (1, 2, 8, 9, 10, 12, 16, 24)] == [1, 1, 1, 3, 2, 2, 2, 3]
    with pytest.raises(UserError, match="--nodes"):
        default_nodes(11)
    with pytest.raises(UserError, match="--nodes 3"):
        splits(8, nodes=3)


def test_the_fastest_that_fits_comes_first():
    plans = search(JOB, MACHINE, world=4, nodes=1, choice=Choice())
    times = [plan.forecast.chunk for plan in plans]
    assert times == sorted(times) and all(plan.fits for plan in plans)
    assert len({(plan.layout.mesh, plan.job.fp8) for plan in plans}) == len(plans) == 5
    everything = [plan.memory.total for plan in plans]
    assert all(10**9 < total < 80 * 10**9 for total in everything)


def test_what_does_not_fit_ranks_last():
    large = Job.of(get_preset("14b"), (768, 448))
    memory = Quantity(value=24e9, source="a GPU that is too small for this test")
    small = GpuMachine(gpu=replace(GPUS["h800"], memory=memory), shares=SHARES)
    plans = search(large, small, world=8, nodes=1, choice=Choice(ulysses=8))
    assert [(plan.job.fp8, plan.fits) for plan in plans] == [(True, True), (False, False)]
    (only,) = search(large, small, world=8, nodes=1, choice=Choice(ulysses=8, fp8=False))
    assert not only.fits and only.memory.total > only.capacity == 24e9


def test_a_split_whose_memory_is_not_predicted():
    (plan,) = search(JOB, MACHINE, world=8, nodes=1, choice=Choice(ulysses=8, fp8=False))
    assert plan.memory is None and plan.fits


def test_the_network_keeps_ulysses_within_nodes():
    large = Job.of(get_preset("14b"), (768, 448))
    best = search(large, MACHINE, world=16, nodes=2, choice=Choice(fp8=False), shown=1)[0]
    assert best.layout.mesh.ulysses <= 8 and best.layout.far_heads == 0


def test_scaling():
    worlds = (1, 2, 4, 8)
    plans = scaling(JOB, MACHINE, worlds=worlds, choice=Choice(fp8=False))
    assert [plan.layout.world for plan in plans] == list(worlds)
    times = [plan.forecast.chunk for plan in plans]
    assert times == sorted(times, reverse=True)
    memory = Quantity(value=42e9, source="between what one GPU and several need, for this test")
    tight = GpuMachine(gpu=replace(GPUS["h800"], memory=memory), shares=SHARES)
    large = Job.of(get_preset("14b"), (768, 448))
    plans = scaling(large, tight, worlds=(1, 8), choice=Choice(fp8=False))
    assert plans[0] is None and plans[1] is not None
