"""The loop of every training: updates, metrics, checkpoints, independent of the method.

An update depends on its index alone, so a run that resumes from a checkpoint makes the updates that
it would have made, and so do other numbers of ranks: a micro-batch belongs to all of them, and each
takes its share of the samples.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from livetalk_kernels.errors import NumericsError
from livetalk_kernels.runtime.comm import Communicator

from ..settings import RESOLVED, Run
from .place import Place
from .records import METRICS, Records
from .saving import State, save
from .shards import average_gradients, reduce_gradients
from .update import set_rate, take_step

_REMEMBERED = 20  # updates whose mean time is extrapolated


class Data(Protocol):
    """Source of batches."""

    def batch(self, at: "At") -> Mapping[str, Tensor]:
        """Return the samples at hand: tensors [samples, ...] that depend only on where it is."""
        ...


@dataclass(frozen=True, kw_only=True)
class At:
    """The position of a rank's part of a micro-batch in a run.

    Attributes:
        step: Index of the update.
        micro: Index of the micro-batch in it.
        samples: Indices, in the update's batch, of the samples at hand.
    """

    step: int
    micro: int
    samples: Sequence[int]


class Task(Protocol):
    """What trains one or several networks, each in its turn."""

    def turns(self, step: int) -> Sequence[str]:
        """List the networks that take a step in an update, in order."""
        ...

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute a network's loss, the mean over the samples at hand, and numbers to record."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        step: Updates done.
        steps: Total updates.
        seconds: Seconds of the last one.
        left: Estimated seconds until the end.
        numbers: Latest metrics; a network that was not trained in this update keeps its last ones.
    """

    step: int
    steps: int
    seconds: float
    left: float
    numbers: Mapping[str, float]


def train(
    run: Run,
    task: Task,
    state: State,
    data: Data,
    folder: Path,
    *,
    place: Place | None = None,
    phase: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
    asked: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> bool:
    """Make the remaining updates, with checkpoints at intervals and at the end.

    Args:
        run: The settings.
        task: What is learned.
        state: State of the run; its step is the number of updates done.
        data: The batches.
        folder: The run's folder: settings, metrics, checkpoints.
        place: The device and the ranks; by default one rank on the CPU.
        phase: Entered for each ``update`` and ``save``, as in `Watchdog.phase`.
        asked: Returns whether to stop the run; on any rank, after any update.
        report: Called after every update, on every rank.

    Returns:
        Whether the run has reached its end; if not, it has stopped after a checkpoint.

    Raises:
        UserError: The ranks cannot share a micro-batch, or a file cannot be written.
        NumericsError: A loss or gradient is not finite; the last checkpoint is kept.
    """
    place = place or Place()
    comm = place.control
    run.check_ranks(comm.size)
    saved, durations = state.step, deque[float](maxlen=_REMEMBERED)
    latest: dict[str, float] = {}
    records = None
    if comm.rank == 0:
        run.write(folder / RESOLVED)
        records = Records(folder / METRICS, after=state.step)
    try:
        while state.step < run.steps and not _anyone(comm, asked()):
            begin = time.monotonic()
            with phase("update"):
                numbers = update(run, task, state, data, place)
            latest = latest | numbers  # a new dict, since `report` may keep the previous one
            state.step += 1
            durations.append(time.monotonic() - begin)
            if records and (state.step % run.record_every == 0 or state.step == run.steps):
                records.add({"step": state.step, "seconds": durations[-1], **numbers})
            if state.step % run.save_every == 0 or state.step == run.steps:
                with phase("save"):
                    save(state, folder, comm)
                saved = state.step
            left = sum(durations) / len(durations) * (run.steps - state.step)
            report(
                Progress(
                    step=state.step, steps=run.steps, seconds=durations[-1], left=left,
                    numbers=latest,
                )
            )  # fmt: skip
        if saved != state.step:
            with phase("save"):
                save(state, folder, comm)
    finally:
        if records:
            records.close()
    return state.step == run.steps


def update(run: Run, task: Task, state: State, data: Data, place: Place) -> dict[str, float]:
    """Let each network whose turn it is take one step; does not advance the state's step.

    Returns:
        Means over micro-batches and ranks: ``TURN loss``, ``TURN norm`` of the gradient, and what
        the task records; the same on all ranks.
    """
    found: dict[str, float] = {}
    comm = place.control
    size = run.micro_batch // comm.size
    for turn in task.turns(state.step):
        network, optimizer = state.networks[turn], state.optimizers[turn]
        optimizer.zero_grad()
        sums: dict[str, float] = {}
        for micro in range(run.accumulate):
            first = micro * run.micro_batch + comm.rank * size
            at = At(step=state.step, micro=micro, samples=range(first, first + size))
            batch = {key: place.take(value) for key, value in data.batch(at).items()}
            reduce_gradients(network, micro == run.accumulate - 1)
            loss, numbers = task.loss(state, turn, batch, at)
            (loss / run.accumulate).backward()
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                sums[name] = sums.get(name, 0.0) + value / run.accumulate
        average_gradients(network, place.world)
        means = _mean(comm, sums)
        set_rate(optimizer, run.rate_factor(state.step))
        means["norm"] = _step(run, state, turn, means)
        found |= {f"{turn} {name}": value for name, value in means.items()}
    return found


def _step(run: Run, state: State, turn: str, means: Mapping[str, float]) -> float:
    where = f"update {state.step + 1}"
    odd = [name for name, value in means.items() if not abs(value) < float("inf")]
    cure = "the last checkpoint stands: resume with a smaller learning rate"
    if odd:
        raise NumericsError(where, f"the {turn}'s {odd[0]} is NaN or Inf; {cure}")
    try:
        norm = take_step(state.optimizers[turn], max_norm=run.max_norm)
    except NumericsError:
        raise NumericsError(where, f"the {turn}'s gradient is NaN or Inf; {cure}") from None
    if turn in state.averages:
        state.averages[turn].update(state.networks[turn])
    return norm


def _mean(comm: Communicator, numbers: Mapping[str, float]) -> dict[str, float]:
    """Average over the ranks, which all have the same names."""
    names = sorted(numbers)
    values = torch.tensor([numbers[name] for name in names], dtype=torch.float64)
    if comm.size > 1:
        comm.all_reduce(values, "sum", kind="metrics").div_(comm.size)
    return dict(zip(names, values.tolist(), strict=True))


def _anyone(comm: Communicator, asked: bool) -> bool:
    if comm.size == 1:
        return asked
    return bool(comm.all_reduce(torch.tensor([int(asked)]), "max", kind="control"))
