"""Estimates how long a recipe will take here: some updates of each training, timed on two clips.

The cost of an update depends on its index (the VAE sees crops first, whole chunks later), but not
on what has been learned, so random networks and a few updates from all parts of a run suffice.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from .chunks.feature_data import FeatureData
from .data.clips import Clips, ClipWriter, Index
from .data.synthetic import TRUTH, make_clip
from .demo import Kind
from .loop.loop import update
from .loop.place import Place
from .loop.training import About, Training
from .settings import Run
from .trainings import make_training

DATASET = "dataset"
_CLIPS = 2
PLACES = 9
"""Updates timed per run: three in each third of the VAE's curriculum."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The stages of a training, in order.

    Attributes:
        clips: Number of clips.
        seconds: Length of each.
        size: Their (H, W).
        program: espeak-ng's path; None for synthetic vowels.
        runs: Settings of each training.
    """

    clips: int
    seconds: float
    size: tuple[int, int]
    program: str | None
    runs: Mapping[Kind, Run]


def estimate(
    recipe: Recipe,
    folder: Path,
    *,
    places: int = PLACES,
    report: Callable[[str, float], None] = lambda stage, seconds: None,
) -> Mapping[str, float]:
    """Time samples of all stages.

    Args:
        recipe: The stages.
        folder: An empty folder for clips and untrained weights.
        places: Number of updates per training to time.
        report: Called with each stage and its seconds, once known.

    Returns:
        Stage -> seconds, in the order of the recipe.

    Raises:
        UserError: The clips are unsuitable for a training.
    """
    begin = time.perf_counter()
    clips = _make_clips(recipe, folder / DATASET)
    found = {DATASET: (time.perf_counter() - begin) / _CLIPS * recipe.clips}
    report(DATASET, found[DATASET])
    paths: dict[Kind, Path] = {kind: folder / kind for kind in get_args(Kind)}
    sources = {"vae": paths["vae"], "audio_encoder": paths["audio"], "teacher": paths["teacher"]}
    for kind, path in paths.items():
        about = About(
            kind=kind, data=str(clips.folder), sources={k: str(v) for k, v in sources.items()}
        )
        training = make_training(about, recipe.runs[kind], clips)
        found[kind] = _features(training) * recipe.clips + _updates(
            training, recipe.runs[kind], places
        )
        report(kind, found[kind])
        training.finish(path)
    return found


def _make_clips(recipe: Recipe, folder: Path) -> Clips:
    writer = ClipWriter(folder, Index(size=recipe.size, truth=TRUTH))
    for number in range(_CLIPS):
        clip = make_clip(
            seed=0, split="train", index=number, seconds=recipe.seconds, size=recipe.size,
            program=recipe.program,
        )  # fmt: skip
        writer.enter(writer.store(f"{number:06d}.safetensors", clip))
    writer.write_index(complete=True)
    return Clips(folder)


def _features(training: Training) -> float:
    """Time what a clip takes before the first update that sees it."""
    if not isinstance(training.data, FeatureData):
        return 0.0
    begin = time.perf_counter()
    training.data.first_chunk()
    return time.perf_counter() - begin


def _updates(training: Training, run: Run, places: int) -> float:
    """Estimate the time of all updates from some across the run."""
    state, seconds = training.state, list[float]()
    steps = [(2 * place + 1) * run.steps // (2 * places) for place in range(places)]
    for step in (steps[0], *steps):  # the first one computes features and warms up
        state.step = step
        begin = time.perf_counter()
        update(run, training.task, state, training.data, Place())
        seconds.append(time.perf_counter() - begin)
    return sum(seconds[1:]) / places * run.steps
