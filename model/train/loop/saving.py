"""Checkpoints of a run: everything needed to resume, bit for bit, on any number of ranks.

``checkpoints/step-00000100/`` holds a file per shard, ``part-0-of-2.safetensors``, with the rank's
rows of every tensor, and ``done.json``, written last: a folder without it was left by a run that
was killed while saving, and is not a checkpoint. What a task keeps of samples is in a file for each
rank, ``samples-0-of-2.safetensors``. On several machines the folder must be visible to all.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import Count, build, is_file, read_json
from livetalk_kernels.lines import list_keys
from livetalk_kernels.outputs import new_file, write_json
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator

from ...weights.safetensors_file import SafetensorsFile, write_safetensors
from .adamw8bit import CODES, SCALES, put_together, take_apart
from .shards import local_rows, shard_axis
from .update import Average, learning

CHECKPOINTS = "checkpoints"
DONE = "done.json"
KEPT = 2
_NAME = re.compile(r"step-(\d{8})")
_CURE = "resume from the checkpoint before: remove this one's folder"


@dataclass(kw_only=True)
class State:
    """The state of a run.

    Attributes:
        networks: Networks that learn, by name.
        optimizers: Their optimisers.
        averages: Average weights, for those that have them.
        samples: What the task keeps of this rank's samples, [samples, ...], by name.
        step: Updates done.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    averages: Mapping[str, Average] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        """Check that each network has an optimiser."""
        assert self.networks.keys() == self.optimizers.keys() >= self.averages.keys()


@dataclass(frozen=True, kw_only=True)
class _Done:
    """The contents of ``done.json``."""

    livetalk_checkpoint: Literal[1]
    step: Count
    parts: Count
    samples: Count = 0


def save(state: State, folder: Path, comm: Communicator | None = None) -> Path:
    """Write a checkpoint, and keep the last two.

    Args:
        state: State to save.
        folder: The run's folder.
        comm: The ranks, all of which must call this.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: It cannot be written; earlier ones are kept.
    """
    comm = comm or LocalCommunicator()
    path = folder / CHECKPOINTS / f"step-{state.step:08d}"
    rows = {
        key + part: tensor
        for key, value in _tensors(state)
        if _mine(value, comm.rank)
        for part, tensor in take_apart(local_rows(value)[0]).items()
    }
    part, parts = _place(state)
    _write(path / _part(part, parts), rows)
    _write(path / _part(comm.rank, comm.size, "samples"), state.samples)
    comm.barrier()
    if comm.rank == 0:
        samples = comm.size if state.samples else 0
        done = _Done(livetalk_checkpoint=1, step=state.step, parts=parts, samples=samples)
        write_json(path / DONE, asdict(done))
        _forget(folder)
    comm.barrier()
    return path


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; None without one."""
    return next((path for path in reversed(_saved(folder)) if is_file(path / DONE)), None)


def load(state: State, path: Path, comm: Communicator | None = None) -> None:
    """Restore a checkpoint, for this rank's share of all tensors.

    Args:
        state: With the same networks and optimisers; values and shards may differ.
        path: The checkpoint's folder.
        comm: The ranks, which share the samples.

    Raises:
        UserError: It is damaged, or belongs to other networks.
    """
    try:
        done = build(_Done, read_json(path / DONE, "checkpoint", cure=_CURE))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path / DONE}: {error}; {_CURE}") from None
    with _opened(path, done.parts) as stored:
        _fill(state, stored)
    comm = comm or LocalCommunicator()
    with _opened(path, done.samples, "samples") as stored:
        for key in stored.keys:
            size = stored.shape(key)[0] // comm.size
            state.samples[key] = stored.read(key, range(comm.rank * size, (comm.rank + 1) * size))
    state.step = done.step


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, if there is anything to write."""
    if tensors:
        with new_file(path) as file:
            write_safetensors(
                file,
                [
                    (key, (tuple(value.shape), value.dtype), _giver(value))
                    for key, value in tensors.items()
                ],
            )


@contextmanager
def _opened(path: Path, count: int, kind: str = "part") -> Iterator["_Stored"]:
    """Open all files of a kind."""
    with ExitStack() as stack:
        files = []
        for number in range(count):
            name = path / _part(number, count, kind)
            file = SafetensorsFile(name, "checkpoint", cure=_CURE, missing=_CURE)
            files.append(stack.enter_context(closing(file)))
        yield _Stored(path, files)


class _Stored:
    """Tensors whose rows are spread over several files, in order."""

    def __init__(self, path: Path, parts: Sequence[SafetensorsFile]) -> None:
        self.path, self._parts = path, parts
        self.keys = {key for part in parts for key in part.shapes}

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the whole shape."""
        shapes = [part.shapes[key][0] for part in self._parts if key in part.shapes]
        if not shapes[0]:
            return ()
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(self, key: str, rows: range | None = None) -> Tensor:
        """Read some rows, or all; returns a fresh tensor."""
        pieces, offset = [], 0
        for part in self._parts:
            if key not in part.shapes:
                continue
            piece = part.read(key)
            if rows is None or not piece.ndim:
                pieces.append(piece)
                continue
            here = slice(max(rows.start - offset, 0), max(rows.stop - offset, 0))
            pieces.append(piece[here])
            offset += len(piece)
        return pieces[0].clone() if not pieces[0].ndim else torch.cat(pieces)

    def read_blocks(self, key: str, place: tuple[int, int]) -> Tensor | None:
        """Read a rank's part of an 8-bit state, whose blocks span rows; None if it has none.

        Raises:
            UserError: The parts are of another number of ranks.
        """
        number, count = place
        if count != len(self._parts):
            raise UserError(
                f"{self.path}: has states of 8 bits in {len(self._parts)} parts, which {count} "
                "ranks cannot share; resume on as many ranks as there are parts"
            )
        part = self._parts[number]
        if key + CODES in part.shapes:
            name = key.rpartition("/")[2]
            return put_together(name, part.read(key + CODES), part.read(key + SCALES))
        return part.read(key).clone() if key in part.shapes else None


@torch.no_grad()
def _fill(state: State, stored: _Stored) -> None:
    targets = dict(_weights(state))
    inner = {key for key in stored.keys if _is_optimizers(key)}
    missing, extra = targets.keys() - stored.keys, stored.keys - targets.keys() - inner
    wrong = [
        key
        for key in sorted(targets.keys() & stored.keys)
        if stored.shape(key) != tuple(targets[key].shape)
    ]
    for kind, keys in (("missing", missing), ("unexpected", extra), ("of other shapes", wrong)):
        if keys:
            raise UserError(
                f"{stored.path}: is of another network: {len(keys)} tensors {kind} "
                f"({list_keys(sorted(keys))}); resume with the settings that it was begun with"
            )
    for key, value in targets.items():
        local, rows = local_rows(value)
        local.copy_(stored.read(key, rows))
    for name, network in state.networks.items():
        parameters = dict(learning(network))
        entries: dict[int, dict[str, Tensor]] = {}
        places = _places(network, state.optimizers[name])
        for key in sorted({key.removesuffix(CODES).removesuffix(SCALES) for key in inner}):
            owner, _, rest = key.partition("/optimizer/")
            if owner != name:
                continue
            parameter, _, kind = rest.rpartition("/")
            entries.setdefault(places[parameter], {})[kind] = _like(
                parameters[parameter], stored, key, _place(state)
            )
        optimizer = state.optimizers[name]
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _like(parameter: Tensor, stored: _Stored, key: str, place: tuple[int, int]) -> Tensor:
    """Create an optimiser's tensor, sharded like its parameter."""
    part, rows = local_rows(parameter)
    if key + CODES in stored.keys:
        local = stored.read_blocks(key, place)
        local = torch.zeros_like(part) if local is None else local.to(part.device)
    elif not isinstance(parameter, DTensor) or stored.shape(key) != tuple(parameter.shape):
        return stored.read(key)
    else:
        local = stored.read(key, rows).to(part.device)
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _tensors(state: State) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a state with their keys in a checkpoint."""
    yield from _weights(state)
    for name, network in state.networks.items():
        held = state.optimizers[name].state
        for parameter_name, parameter in learning(network):
            for kind, value in held.get(parameter, {}).items():
                assert isinstance(value, Tensor), f"{kind}: an optimiser that keeps no tensors"
                yield f"{name}/optimizer/{parameter_name}/{kind}", value


def _weights(state: State) -> Iterator[tuple[str, Tensor]]:
    for name, network in state.networks.items():
        for parameter_name, parameter in learning(network):
            yield f"{name}/weights/{parameter_name}", parameter
    for name, average in state.averages.items():
        for parameter_name, value in average.weights.items():
            yield f"{name}/average/{parameter_name}", value


def _is_optimizers(key: str) -> bool:
    return "/optimizer/" in key


def _places(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Map parameter names to their indices in the optimiser."""
    names = {id(parameter): name for name, parameter in learning(network)}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return {names[id(parameter)]: number for number, parameter in enumerate(held)}


# Assignment of rows to ranks ----------------------------------------------------------------


def _giver(value: Tensor) -> Callable[[], Tensor]:
    return lambda: value


def _mine(value: Tensor, rank: int) -> bool:
    """Return whether this rank should save its part of a tensor."""
    if not isinstance(value, DTensor):
        return rank == 0
    mesh, axis = value.device_mesh, shard_axis(value)
    copies = [mesh.get_local_rank(i) for i in range(mesh.ndim) if i != axis]
    return not any(copies) and len(value.to_local()) > 0


def _place(state: State) -> tuple[int, int]:
    """Return the index of this rank's shard, and the number of shards."""
    for _, value in _weights(state):
        if isinstance(value, DTensor):
            axis = shard_axis(value)
            return value.device_mesh.get_local_rank(axis), value.device_mesh.size(axis)
    return 0, 1


# Folders -------------------------------------------------------------------------------------


def _part(number: int, count: int, kind: str = "part") -> str:
    return f"{kind}-{number}-of-{count}.safetensors"


def _saved(folder: Path) -> list[Path]:
    """List checkpoint folders, complete or not, oldest first."""
    return sorted(
        path for path in (folder / CHECKPOINTS).glob("step-*") if _NAME.fullmatch(path.name)
    )


def _forget(folder: Path) -> None:
    """Remove all but the last complete checkpoints, and what killed runs have left."""
    saved = _saved(folder)
    whole = [path for path in saved if is_file(path / DONE)]
    for path in saved:
        if path not in whole[-KEPT:]:
            (path / DONE).unlink(missing_ok=True)  # first: a partial folder is not a checkpoint
            shutil.rmtree(path, ignore_errors=True)
