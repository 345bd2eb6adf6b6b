"""A training as a separate command: whether it is done, and how to begin or resume it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file
from livetalk_model.train.audio.export import AUDIO_WEIGHTS
from livetalk_model.train.demo import Kind
from livetalk_model.train.loop.training import ABOUT
from livetalk_model.train.product.export import DIT_FILE
from livetalk_model.train.settings import RESOLVED, Run
from livetalk_model.weights.checkpoint import VAE_FILE

MADE: dict[Kind, str] = {
    "vae": VAE_FILE, "audio": AUDIO_WEIGHTS, "teacher": DIT_FILE, "distill": DIT_FILE,
}  # fmt: skip
"""What a training writes at its end."""


def is_done(folder: Path, kind: Kind, run: Run) -> bool:
    """Return whether a training has reached its end.

    Raises:
        UserError: It was begun with other settings.
    """
    settings = folder / RESOLVED
    if is_file(settings) and Run.read(settings) != run:
        raise UserError(
            f"{settings}: was begun with other settings than these; give another --output"
        )
    return is_file(folder / MADE[kind])


def train_words(folder: Path, kind: Kind, run: Run, sources: Mapping[str, Path]) -> list[str]:
    """Build the arguments of ``livetalk`` that begin or resume a training.

    A folder whose training was killed before its first update is removed; the settings of a new one
    are written next to its folder.

    Args:
        folder: Folder of the run.
        kind: What to train.
        run: The settings.
        sources: Option without dashes -> folder.
    """
    # On a CPU also where there is a GPU: the recipe's settings and times are those of CPU cores.
    words = ["train", kind, "--output", str(folder), "--device", "cpu"]
    if is_file(folder / RESOLVED):
        return [*words, "--resume"]
    if is_file(folder / ABOUT):
        shutil.rmtree(folder)
    settings = folder.with_name(f"{folder.name}.toml")
    run.write(settings)
    given = ((f"--{option}", str(path)) for option, path in sources.items())
    return [*words, "--config", str(settings), *(word for pair in given for word in pair)]
