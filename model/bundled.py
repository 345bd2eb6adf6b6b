"""Files that come with the package: trained weights, portraits, and a speech."""

from collections.abc import Mapping
from pathlib import Path

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file

from .config import get_preset
from .weights.checkpoint import DIT_CONFIG

_FOLDER = Path(__file__).resolve().parent
_SAMPLES = _FOLDER / "samples"
SPEECH = _SAMPLES / "speech.wav"


def bundled_weights(preset: str) -> Path | None:
    """Return the folder of a preset's trained weights; None if its weights are random.

    Raises:
        UserError: They are missing from this installation.
    """
    if not get_preset(preset).bundled:
        return None
    folder = _FOLDER / preset
    if not is_file(folder / DIT_CONFIG):
        raise UserError(
            f"--preset {preset}: its weights are not in this installation ({folder}); make them "
            "with 'make train-demo', or choose --preset tiny"
        )
    return folder


def bundled_portraits() -> Mapping[str, Path]:
    """Map the names that ``--portrait`` accepts to their pictures."""
    return {path.stem: path for path in sorted(_SAMPLES.glob("*.png"))}
