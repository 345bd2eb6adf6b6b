"""Synthetic clips: a drawn talking face, with its ground truth.

A clip is determined by (seed, split, index) alone, so a resumed run continues with the same ones.
"""

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..faces import liveliness
from ..faces.cast import PERSONS, SPLITS, Split
from ..faces.identity import Identity
from ..faces.mouth import FPS, HOP, follow
from ..faces.painter import Painter, Pose
from .clips import Clip
from .voices import PROGRAM, make_speech

TRUTH = tuple(field.name for field in fields(Pose))
"""Columns of a synthetic clip's truth."""
_SMILES = 0.12  # mouth width added by a smile of 1: the same sound has several mouths


def drawn_settings(*, seed: int, split: Split, program: str | None) -> dict[str, Any]:
    """Describe drawn clips for their `clips.Index`; arguments as in `make_clip`."""
    speech = "babble" if program is None else PROGRAM
    return {"source": "synthetic", "seed": seed, "split": split, "speech": speech}


def make_clip(
    *,
    seed: int,
    split: Split,
    index: int,
    seconds: float,
    size: tuple[int, int],
    program: str | None,
) -> Clip:
    """Draw a clip.

    Args:
        seed: Seed of the dataset.
        split: Split of voices, texts and persons.
        index: Index of the clip.
        seconds: Length, rounded to frames.
        size: Picture's (H, W).
        program: espeak-ng's path; None for synthetic vowels.

    Raises:
        UserError: espeak-ng fails.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    frames = round(seconds * FPS)
    person = Identity.of(int(rng.choice(PERSONS[split])))
    speech = make_speech(rng, split, frames * HOP, program=program)
    truth = make_truth(rng, speech.wave)
    painter = Painter(person, size)
    drawn = np.stack([painter.draw(Pose(**dict(zip(TRUTH, row, strict=True)))) for row in truth])
    return Clip(
        frames=drawn,
        audio=np.round(speech.wave * 32768).astype(np.int16),
        truth=truth.astype(np.float32),
        facts={"person": person.number, "voice": speech.voice, "texts": list(speech.texts)},
    )


def make_truth(rng: np.random.Generator, wave_N: NDArray[np.float32]) -> NDArray[np.float64]:
    """Generate what a face does with a sound, [T, 9]; columns are `TRUTH`.

    Args:
        rng: Chooses what the sound does not determine.
        wave_N: Whole frames at 16 kHz.
    """
    opening, width = follow(wave_N)
    frames = len(opening)
    smile = liveliness.smile(rng, frames)
    width = np.clip(width + _SMILES * smile, 0, 1)
    blink, gaze = liveliness.blinks(rng, frames), liveliness.gaze(rng, frames)
    sway = liveliness.sway(rng, frames)
    return np.column_stack([opening, width, smile, blink, gaze, sway])
