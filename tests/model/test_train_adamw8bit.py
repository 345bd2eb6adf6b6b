"""AdamW with states of 8 bits: AdamW's step, a quarter of its memory, and a run that resumes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train_ranks import RUN, alone, place_of, settled, teach
from train_runs import same
from train_samples import small_network

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.train.chunks.tasks import TEACHER
from livetalk_model.train.loop.adamw8bit import CODES, take_apart
from livetalk_model.train.loop.saving import State, last_checkpoint, load
from livetalk_model.train.loop.shards import local_rows
from livetalk_model.train.loop.training import start_state

EIGHT = replace(RUN, optimizer="adamw8bit", learning_rate=1e-3)


def begin(comm: Communicator, *, seed: int = 5, run=EIGHT) -> State:
    network = settled(small_network(seed=seed), place_of(comm))
    return start_state(run, {TEACHER: network}, {TEACHER: run.learning_rate})


def bits(state: State) -> dict[str, Tensor]:
    """This rank's weights, and its states as they are kept."""
    found = {}
    for name, parameter in state.networks[TEACHER].named_parameters():
        held = {"weight": parameter, **state.optimizers[TEACHER].state[parameter]}
        found |= {
            f"{name} {kind}{part}": tensor.clone()
            for kind, value in held.items()
            for part, tensor in take_apart(local_rows(value)[0]).items()
        }
    return found


def taught(comm: Communicator, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Four updates; and two, with two more from their checkpoint."""
    straight, first, second = begin(comm), begin(comm), begin(comm, seed=8)
    teach(comm, straight, Path(folder, "straight"))
    teach(comm, first, Path(folder, "parts"), steps=2)
    load(second, last_checkpoint(Path(folder, "parts")), comm)
    teach(comm, second, Path(folder, "again"))
    return bits(straight), bits(second)


def test_an_update_is_adamws_and_its_states_take_a_quarter(tmp_path):
    pytest.importorskip("torchao.optim", reason="pip install 'livetalk[train]'")
    comm, made = LocalCommunicator(), {}
    for name in ("adamw", "adamw8bit"):
        state = begin(comm, run=replace(EIGHT, optimizer=name))
        teach(comm, state, tmp_path / name, steps=1)
        made[name] = bits(state)
    one, eight = made["adamw"], made["adamw8bit"]
    for name in (name for name in one if name.endswith("weight")):
        assert torch.allclose(one[name], eight[name], rtol=0, atol=1e-6), name
    codes = [name.removesuffix(CODES) for name in eight if name.endswith(CODES)]
    assert len(codes) >= 10
    kept = sum(tensor.nbytes for name, tensor in eight.items() if name.startswith(tuple(codes)))
    assert kept < 0.26 * sum(one[name].nbytes for name in codes)


def test_it_resumes_bit_for_bit_on_as_many_ranks(tmp_path):
    pytest.importorskip("torchao.optim", reason="pip install 'livetalk[train]'")
    for straight, resumed in (
        alone(taught, str(tmp_path / "one")), *run_ranks(taught, 2, str(tmp_path / "two"))
    ):  # fmt: skip
        assert any(name.endswith(CODES) for name in straight) and same(straight, resumed)
    with pytest.raises(UserError, match=r"8 bits in 2 parts, which 1 ranks.*as many ranks as"):
        load(begin(LocalCommunicator()), last_checkpoint(tmp_path / "two/parts"))


def test_without_torchao_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"needs torchao; pip install 'livetalk\[train\]'"):
        begin(LocalCommunicator())
