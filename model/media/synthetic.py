"""Speech and a picture that are made up, for runs in which only time or error counts."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import NEW_FRAMES

SAMPLE_RATE = 16000
_SYLLABLES = 9.0  # radians a second of the loudness
_LOUDNESS = 0.1


def speech(chunk: int, *, fps: float | Fraction = 25) -> NDArray[np.float32]:
    """Deterministic noise with the rhythm of syllables: the sound of one chunk.

    Args:
        chunk: Which chunk of a stream, from 0.
        fps: Video frames per second.

    Returns:
        float32 [n] in -1..1 at 16 kHz, as long as the chunk's 28 new frames.
    """
    first, last = (round(n * NEW_FRAMES * SAMPLE_RATE / fps) for n in (chunk, chunk + 1))
    t = np.arange(first, last) / SAMPLE_RATE
    noise = np.random.default_rng(chunk).normal(0, _LOUDNESS, last - first)
    return (noise * np.sin(t * _SYLLABLES) ** 2).astype(np.float32)


def picture(size: tuple[int, int]) -> Image.Image:
    """A smooth picture of so many rows and columns."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((255 * x / width, 255 * y / height, 128 + 0 * x), axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))
