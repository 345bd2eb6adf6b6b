"""What comes with the package: trained weights, portraits, and a speech."""

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
    """Folder of the trained weights of a preset; None where its weights are random.

    Raises:
        UserError: They are not in this installation.
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
    """Name -> picture, of the portraits that ``--portrait`` knows by name."""
    return {path.stem: path for path in sorted(_SAMPLES.glob("*.png"))}
