"""What a face does at random while it talks: sway, blinks, gaze, smile.

The sound determines none of it, so a model has to choose, and a distilled one has something to
preserve.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .mouth import FPS

Floats: TypeAlias = NDArray[np.float64]

SWAY = (0.04, 0.016, 0.08)
"""Largest typical sway: right, down, and rotation in radians."""
_SLOWNESS = 0.55  # seconds over which head motion is smooth
_MOOD = 1.2  # the same for a smile
_BLINK = (0.35, 0.9, 1.0, 0.75, 0.35, 0.1)  # how far the lids are closed, frame by frame
_BLINK_EVERY = 2.2  # seconds, on average, beyond the minimum
_BLINK_LEAST = 0.7
_LOOK_EVERY = 1.1
_LOOK_LEAST = 0.3
_AHEAD = 0.5  # fraction of looks straight ahead


def sway(rng: np.random.Generator, frames: int) -> Floats:
    """Generate a head's motion: right, down, and rotation, [T, 3]."""
    limits = np.array(SWAY)
    return np.clip(_drift(rng, (frames, 3), _SLOWNESS) * limits / 2, -1.3 * limits, 1.3 * limits)


def smile(rng: np.random.Generator, frames: int) -> Floats:
    """Generate how far the corners of the mouth are raised, [T] in -1..1."""
    return np.clip(rng.uniform(-0.2, 0.5) + 0.4 * _drift(rng, (frames,), _MOOD), -1, 1)


def blinks(rng: np.random.Generator, frames: int) -> Floats:
    """Generate how far the eyes are closed, [T] in 0..1."""
    closed = np.zeros(frames + len(_BLINK))
    at = rng.exponential(_BLINK_EVERY) * FPS
    while at < frames:
        first = int(at)
        closed[first : first + len(_BLINK)] = np.maximum(
            closed[first : first + len(_BLINK)], _BLINK
        )
        at += (_BLINK_LEAST + rng.exponential(_BLINK_EVERY)) * FPS
    return closed[:frames]


def gaze(rng: np.random.Generator, frames: int) -> Floats:
    """Generate where the eyes look, [T, 2] in -1..1: they rest, and jump."""
    looks = np.zeros((frames, 2))
    at = 0
    while at < frames:
        target = rng.uniform(-1, 1, 2) * (rng.random() >= _AHEAD)
        looks[at:] = target
        if at > 0:
            looks[at] = (looks[at - 1] + target) / 2
        at += round((_LOOK_LEAST + rng.exponential(_LOOK_EVERY)) * FPS)
    return looks


def _drift(rng: np.random.Generator, shape: tuple[int, ...], seconds: float) -> Floats:
    """Generate smooth noise along the first axis, with a standard deviation of 1."""
    spread = seconds * FPS / 2
    reach = int(4 * spread)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2)
    weights /= np.sqrt((weights**2).sum())
    noise = rng.normal(size=(shape[0] + 2 * reach, *shape[1:]))
    return np.apply_along_axis(np.convolve, 0, noise, weights, mode="valid")
