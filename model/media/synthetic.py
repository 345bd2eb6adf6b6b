"""Synthetic speech and pictures: for runs that only measure time or error, and for data."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import NEW_FRAMES

SAMPLE_RATE = 16000
_SYLLABLES = 9.0  # of the loudness, radians per second
_LOUDNESS = 0.1
_VOWELS = ((750, 1250), (500, 1800), (300, 2250), (480, 850), (320, 750), (500, 1450))
"""First and second formant in Hz of a, e, i, o, u and the vowel of 'the'."""
_HIGHEST = 3600  # Hz of the last harmonic


def speech(chunk: int, *, fps: float | Fraction = 25) -> NDArray[np.float32]:
    """Generate deterministic noise with the rhythm of syllables, as long as one chunk.

    Args:
        chunk: Index of the chunk in a stream, from 0.
        fps: Video frames per second.

    Returns:
        float32 [n] in -1..1 at 16 kHz, as long as the chunk's 28 new frames.
    """
    first, last = (round(n * NEW_FRAMES * SAMPLE_RATE / fps) for n in (chunk, chunk + 1))
    t = np.arange(first, last) / SAMPLE_RATE
    noise = np.random.default_rng(chunk).normal(0, _LOUDNESS, last - first)
    return (noise * np.sin(t * _SYLLABLES) ** 2).astype(np.float32)


def picture(size: tuple[int, int]) -> Image.Image:
    """Generate a smooth picture with ``size`` rows and columns."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((255 * x / width, 255 * y / height, 128 + 0 * x), axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def babble(rng: np.random.Generator, samples: int) -> NDArray[np.float32]:
    """Generate a sequence of vowels: a voice's harmonics through two moving formants, and hisses.

    Unlike in `speech`, spectra differ at equal loudness, so that mouth shapes are distinguishable.

    Args:
        rng: Chooses voice, vowels, lengths and pauses.
        samples: Length at 16 kHz.

    Returns:
        float32 [samples] in about -1..1.
    """
    times, vowels, sounding, hissing = [0.0], [_VOWELS[0]], [0.0], [0.0]
    while times[-1] < samples / SAMPLE_RATE:
        start = times[-1]
        pause = rng.uniform(0.2, 0.6) if rng.random() < 0.12 else 0.03
        vowel = _VOWELS[int(rng.integers(len(_VOWELS)))]
        steps = np.cumsum([pause, 0.05, rng.uniform(0.05, 0.2), 0.04])
        times += (start + steps).tolist()
        vowels += [vowel] * 4
        sounding += [0.0, rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0), 0.0]
        hissing += [rng.uniform(0.0, 0.3) * (rng.random() < 0.3), 0.0, 0.0, 0.0]
    t = np.arange(samples) / SAMPLE_RATE
    first, second = (np.interp(t, times, [vowel[n] for vowel in vowels]) for n in (0, 1))
    length = rng.uniform(0.9, 1.2)  # of the vocal tract: a shorter one sounds higher
    pitch = rng.uniform(90, 220) * (1 + 0.08 * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = np.zeros(samples)
    for harmonic in range(1, 1 + int(_HIGHEST / pitch.max())):
        hertz = harmonic * pitch
        gain = 1 / (1 + ((hertz - length * first) / 90) ** 2)
        gain += 0.5 / (1 + ((hertz - length * second) / 130) ** 2)
        voice += gain * np.sin(harmonic * phase)
    hiss = np.diff(rng.normal(0, 0.3, samples + 1))
    wave = 0.3 * voice * np.interp(t, times, sounding) + hiss * np.interp(t, times, hissing)
    return wave.astype(np.float32)
