"""The rule by which a drawn mouth follows the sound.

It needs no phonemes: loudness opens the mouth, the first formant determines how far (high in *a*,
low in *i* and *u*), the second how wide it is (high in *i*, low in *u*), and sibilants bring the
teeth together. So mouths differ at equal loudness.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...media.synthetic import SAMPLE_RATE

Floats: TypeAlias = NDArray[np.float64]

FPS = 25
HOP = SAMPLE_RATE // FPS
"""Samples per frame."""
_WINDOW = 1024
_QUIETEST = 30.0  # dB below the loud parts, at which the mouth is closed
_SILENCE = 1e-5  # mean square below which there is silence
_HEIGHTS = (320.0, 660.0)  # Hz of the lower centroid: nearly closed, wide open
_WIDTHS = (1300.0, 2350.0)  # Hz of the upper centroid: rounded, spread
_SPREAD = 0.65  # mouth width during a hiss
_REST = 0.5  # mouth width in silence


def follow(wave_N: NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Compute how far the mouth is open and how wide it is.

    Args:
        wave_N: Whole frames of speech at 16 kHz.

    Returns:
        Opening and width [N / 640], each in 0..1.
    """
    power_TF = _power(wave_N)
    hertz = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)

    def total(low: float, high: float) -> Floats:
        within = (hertz >= low) & (hertz < high)
        return np.asarray(power_TF[:, within].sum(axis=1))

    def centre(low: float, high: float) -> Floats:
        within = (hertz >= low) & (hertz < high)
        amplitude = np.sqrt(power_TF[:, within])
        return np.asarray((amplitude @ hertz[within] + 1e-6 * low) / (amplitude.sum(axis=1) + 1e-6))

    voiced, everything = total(80, 5000), total(80, SAMPLE_RATE / 2)
    level_T = _level(voiced)
    hiss_T = total(3500, SAMPLE_RATE / 2) / (everything + 1e-9)
    height_T = _share(centre(200, 1000), *_HEIGHTS)
    width_T = _share(centre(900, 2800), *_WIDTHS)
    width_T = (1 - hiss_T) * width_T + hiss_T * _SPREAD
    opening_T = level_T * (0.2 + 0.8 * height_T) * (1 - 0.7 * hiss_T)
    width_T = _REST + np.sqrt(level_T) * (width_T - _REST)
    return _smooth(opening_T), _smooth(width_T)


def loudness(wave_N: NDArray[np.float32]) -> Floats:
    """Compute how loud each frame is, 0..1 over 30 dB, [N / 640], smoothed like the mouth's motion.

    Args:
        wave_N: Whole frames of speech at 16 kHz.
    """
    return _smooth(_level(_power(wave_N).sum(axis=1)))


def _power(wave_N: NDArray[np.float32]) -> Floats:
    """Compute the spectrum around each frame, [T, F]."""
    frames = len(wave_N) // HOP
    side = (_WINDOW - HOP) // 2
    padded = np.pad(wave_N[: frames * HOP].astype(np.float64), (side, side))
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    return np.asarray(np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW), axis=1)) ** 2)


def _level(power_T: Floats) -> Floats:
    """Compute loudness in 0..1, relative to the loud parts of the same clip."""
    loud = np.percentile(power_T, 95)
    if loud < _SILENCE * _WINDOW**2 / 4:
        return np.zeros_like(power_T)
    decibels = 10 * np.log10(power_T / loud + 1e-12)
    return np.clip(1 + decibels / _QUIETEST, 0, 1)


def _share(values: Floats, low: float, high: float) -> Floats:
    return np.clip((values - low) / (high - low), 0, 1)


def _smooth(values_T: Floats) -> Floats:
    """Smooth as lips can move: each frame with half of its neighbours."""
    padded = np.pad(values_T, 1, mode="edge")
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
