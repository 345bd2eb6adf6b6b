"""What all trainings share: their parts, their folder, and pictures along the way."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import build, find, is_file, is_folder, read_json
from livetalk_kernels.outputs import new_file, write_json

from ..demo import Kind
from ..settings import RESOLVED, Run
from .adamw8bit import adamw8bit
from .curves import write_curves
from .loop import Data, Progress, Task, train
from .muon import Muon
from .place import Place
from .saving import State, last_checkpoint, load
from .update import Average, learning

ABOUT = "training.json"  # in a run's folder
SAMPLES = "samples"
VAE_SOURCE, AUDIO_SOURCE, TEACHER_SOURCE, START_SOURCE = "vae", "audio_encoder", "teacher", "start"
"""Names of earlier results; the last one is the transformer that a teacher begins as."""
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = MappingProxyType(
    {"adamw": torch.optim.AdamW, "adamw8bit": adamw8bit, "muon": Muon}
)
_SPECKS = 1e-8  # AdamW's epsilon
_CURE = "give another folder with --output"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, ready to run.

    Attributes:
        task: What is learned.
        state: The networks.
        data: The batches.
        sample: Draws a picture of what the networks can do: uint8 [H, W, 3], truth above, output
            below. Called on all ranks.
        finish: Writes what the product reads to a folder; returns the files. Called on all ranks;
            the first one writes.
    """

    task: Task
    state: State
    data: Data
    sample: Callable[[], Tensor]
    finish: Callable[[Path], Sequence[Path]]


@dataclass(frozen=True, kw_only=True)
class About:
    """What a run's folder is about.

    Attributes:
        livetalk_training: Version of the file.
        kind: Kind of training.
        data: The clips.
        sources: Name -> folder of earlier results.
    """

    livetalk_training: Literal[1] = 1
    kind: Kind
    data: str
    sources: Mapping[str, str] = field(default_factory=dict)


def begin_folder(folder: Path, about: About) -> None:
    """Create a run's folder.

    Raises:
        UserError: Something exists there already, or it is not writable.
    """
    kind = find(folder).kind
    if is_file(folder / ABOUT):
        raise UserError(f"{folder}: has a run; continue it with --resume, or {_CURE}")
    if kind == "file" or (kind == "folder" and any(folder.iterdir())):
        raise UserError(f"{folder}: is there, and holds no run; {_CURE}")
    write_json(folder / ABOUT, asdict(about))


def read_folder(folder: Path) -> tuple[About, Run]:
    """Read what a run's folder is about, and its settings.

    Raises:
        UserError: There is no run, or it is damaged.
    """
    begin = "begin it without --resume"
    if not is_folder(folder):
        raise UserError(f"{folder}: there is no run to continue; {begin}")
    value = read_json(folder / ABOUT, "run", cure=_CURE, missing=f"it holds no run; {begin}")
    try:
        about = build(About, value)
    except ValueError as error:
        raise UserError(f"{folder / ABOUT}: does not describe a run ({error}); {_CURE}") from None
    return about, Run.read(folder / RESOLVED)


def start_state(run: Run, networks: Mapping[str, nn.Module], rates: Mapping[str, float]) -> State:
    """Create optimisers for networks, and averages if the settings request them.

    Args:
        run: The settings.
        networks: Networks that learn, with gradients.
        rates: Their learning rates.
    """
    return State(
        networks=networks,
        optimizers={
            name: OPTIMIZERS[run.optimizer](
                [parameter for _, parameter in learning(network)],
                lr=rates[name],
                betas=run.betas,
                eps=_SPECKS,
                weight_decay=run.weight_decay,
            )
            for name, network in networks.items()
        },
        averages={name: Average(network, run.average) for name, network in networks.items()}
        if run.average
        else {},
    )


def carry_out(
    run: Run,
    training: Training,
    folder: Path,
    *,
    sample_every: int,
    place: Place | None = None,
    phase: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
    asked: Callable[[], bool] = lambda: False,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Sequence[Path]:
    """Resume from the last checkpoint and run to the end, with pictures along the way.

    Args:
        run: The settings.
        training: What to do.
        folder: The run's folder, already created.
        sample_every: Updates between two pictures, with the curves so far; 0 for none.
        place: See `loop.train`.
        phase: See `loop.train`.
        asked: See `loop.train`.
        report: Called after every update, on the first rank.

    Returns:
        The files that the product reads; none if the run was asked to stop.

    Raises:
        UserError: A file is damaged or cannot be written.
        NumericsError: See `loop.train`.
    """
    place = place or Place()
    there = last_checkpoint(folder)
    if there is not None:
        run.check_resumed(folder / RESOLVED)
        load(training.state, there, place.control)

    def after_update(progress: Progress) -> None:
        last = progress.step == run.steps
        if sample_every and (last or progress.step % sample_every == 0):
            with phase("update"):
                picture = training.sample()
            if place.leads:
                write_picture(folder / SAMPLES / f"step-{progress.step:08d}.png", picture)
                write_curves(folder)
        if place.leads:
            report(progress)

    done = train(
        run, training.task, training.state, training.data, folder,
        place=place, phase=phase, asked=asked, report=after_update,
    )  # fmt: skip
    if not done:
        return ()
    with phase("save"):
        return training.finish(folder)


def write_picture(path: Path, picture_HWC: Tensor) -> None:
    """Write a PNG, uint8 [H, W, 3].

    Raises:
        UserError: It cannot be written.
    """
    with new_file(path) as file:
        Image.fromarray(picture_HWC.cpu().contiguous().numpy()).save(file, "PNG")


def truth_above(true_CTHW: Tensor, made_CTHW: Tensor, columns: int = 8) -> Tensor:
    """Place frames from a video side by side, generated ones below: uint8 [2H, k W, 3].

    Args:
        true_CTHW: The true frames, -1 to 1.
        made_CTHW: The generated frames.
        columns: Number of frames, spread over the video.
    """
    frames = torch.linspace(0, true_CTHW.shape[1] - 1, min(columns, true_CTHW.shape[1])).long()
    rows = [video[:, frames].permute(2, 1, 3, 0).flatten(1, 2) for video in (true_CTHW, made_CTHW)]
    return ((torch.cat(rows).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@contextlib.contextmanager
def averaged(state: State, name: str) -> Any:
    """Use a network's average instead of its weights within the block."""
    network = state.networks[name]
    if name not in state.averages:
        yield network
        return
    own = {key: parameter.detach().clone() for key, parameter in learning(network)}
    state.averages[name].copy_to(network)
    try:
        yield network
    finally:
        with torch.no_grad():
            for key, parameter in learning(network):
                parameter.copy_(own[key])
