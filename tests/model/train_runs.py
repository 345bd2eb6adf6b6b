"""A run small enough for a test: two little networks that take turns."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from livetalk_model.train.draws import Draws
from livetalk_model.train.loop import saving
from livetalk_model.train.loop.loop import At, train
from livetalk_model.train.loop.saving import State, last_checkpoint, load
from livetalk_model.train.loop.update import Average
from livetalk_model.train.settings import Run

WIDTH = 6


class Numbers:
    """Batches by counters."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def batch(self, at: At) -> Mapping[str, Tensor]:
        draws = Draws(seed=self.run.seed)
        return {"x": draws.noise("x", (WIDTH,), step=at.step, samples=at.samples)}


class Copying:
    """The one network learns to undo a shift, every other time the other does too."""

    def __init__(self, run: Run, wrong: int = -1) -> None:
        self.draws, self.wrong = Draws(seed=run.seed), wrong

    def turns(self, step: int) -> Sequence[str]:
        return ("critic", "student") if step % 2 else ("critic",)

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        noise = self.draws.noise(turn, (WIDTH,), step=at.step, samples=at.samples)
        shift = self.draws.below(5, turn, step=at.step, micro=at.micro)
        made = state.networks[turn](batch["x"] + 0.1 * noise + shift)
        loss = (made - batch["x"]).square().mean()
        return loss * float("nan" if at.step == self.wrong else 1), {"shift": float(shift)}


def whole(run: Run, step: int = 0, micro: int = 0) -> At:
    """A micro-batch of one rank."""
    first = micro * run.micro_batch
    return At(step=step, micro=micro, samples=range(first, first + run.micro_batch))


def small_run(**settings) -> Run:
    return Run(**{"steps": 6, "batch": 4, "accumulate": 2, "learning_rate": 0.01,
                  "save_every": 3} | settings)  # fmt: skip


def small_state(seed: int = 0) -> State:
    torch.manual_seed(seed)
    networks = {
        name: nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, WIDTH))
        for name in ("critic", "student")
    }
    return state_of(networks)


def state_of(networks: Mapping[str, nn.Module]) -> State:
    """Their optimisers, and the student's average."""
    return State(
        networks=networks,
        optimizers={
            name: torch.optim.AdamW(network.parameters(), lr=0.01)
            for name, network in networks.items()
        },
        averages={"student": Average(networks["student"], 0.9)},
    )


def go(run: Run, state: State, folder: Path, **options) -> bool:
    wrong = options.pop("wrong", -1)
    return train(run, Copying(run, wrong), state, Numbers(run), folder, **options)


def everything(state: State) -> dict[str, Tensor]:
    """All tensors of a state, by name."""
    found = {}
    for name, network in state.networks.items():
        found |= {f"{name} {key}": value for key, value in network.state_dict().items()}
        for number, entry in state.optimizers[name].state_dict()["state"].items():
            found |= {f"{name} {number} {key}": value for key, value in entry.items()}
    for name, average in state.averages.items():
        found |= {f"{name} average {key}": value for key, value in average.weights.items()}
    return {key: value.detach().clone() for key, value in found.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def be_killed(folder: Path, name: str) -> None:
    """Continue a run whose process is killed where its next checkpoint calls a function."""
    setattr(saving, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    torch.set_num_threads(1)
    state = small_state()
    load(state, last_checkpoint(folder))
    go(small_run(save_every=1), state, folder)
