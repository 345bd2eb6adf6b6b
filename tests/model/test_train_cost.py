"""Memory and time of training, against the plan's own table and runs that others have timed."""

from dataclasses import replace

import pytest

from livetalk_kernels.gpus import get_gpu
from livetalk_model.config import DiTConfig
from livetalk_model.train.cost import (
    SAMPLER_STEPS,
    SIZE,
    STUDENT,
    TEACHER,
    TIMED,
    cost,
    forecast_of,
    states,
)

PARAMETERS = 18_880_000_000
GB = 1e9


def of(stage, gpus, optimizer="adamw", **changes):
    return cost(
        replace(stage, **changes), DiTConfig(), PARAMETERS, get_gpu("h800"), gpus, size=SIZE,
        optimizer=optimizer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "full", "small", "first", "second"),
    [(8, 70.8, 42.5, 4.5, 3.8), (64, 8.9, 5.3, 0.6, 0.5)],
)
def test_the_plans_table(gpus, full, small, first, second) -> None:
    assert of(STUDENT, gpus).states / GB == pytest.approx(full, abs=0.06)
    assert of(STUDENT, gpus, "adamw8bit").states / GB == pytest.approx(small, abs=0.06)
    assert 12 <= of(STUDENT, gpus).work / GB <= 15
    assert of(TEACHER, gpus).seconds / 3600 == pytest.approx(first, rel=0.08)
    assert of(STUDENT, gpus).seconds / 3600 == pytest.approx(second, rel=0.08)


def test_what_fits_a_node() -> None:
    capacity = get_gpu("h800").memory.value
    assert of(STUDENT, 8).memory > capacity > of(STUDENT, 8, "adamw8bit").memory


@pytest.mark.parametrize("run", TIMED, ids=lambda run: run.stage.name)
def test_runs_that_others_have_timed(run) -> None:
    assert forecast_of(run, DiTConfig(), PARAMETERS) == pytest.approx(run.hours, rel=0.3)


def test_states_count_each_network() -> None:
    assert states(TEACHER, "adamw") == 16  # weight, two states, gradient
    assert states(STUDENT, "adamw") == 2 * 12 + 4 + 2
    assert states(TEACHER, "adamw8bit") == 10


def test_forwards_are_those_of_the_steps() -> None:
    """Counted by hand over all chunks and steps that can be drawn, each as likely."""
    chunks, updates = 3, 60
    places = [(k, j) for k in range(1, chunks + 1) for j in range(SAMPLER_STEPS)]
    critic = sum(SAMPLER_STEPS * (k - 1) + j + 1 + 4 for k, j in places) / len(places)
    student = sum(SAMPLER_STEPS * (k - 1) + j + 4 + 4 for k, j in places) / len(places)
    stage = replace(STUDENT, chunks=chunks, updates=updates, every=5)
    assert stage.forwards == pytest.approx(updates * critic + updates / 5 * student)
    assert replace(TEACHER, updates=10).forwards == 40
