"""Decoded frames of any sample format as float blocks with their position in time."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from .mixing import Mixer, layout_name

_PLANES = 7
"""Number of planes that PyAV 18 reads safely; frames with more are interleaved first."""


class Format:
    """What frames have in common until the sound's format changes.

    rate: Samples per second.
        rate: Samples per second.
        channels: Channels.
        layout: FFmpeg's name of their layout.
        sample_format: FFmpeg's name of the sample format.
        mixer: Mixer for them.
    """

    def __init__(self, frame: av.AudioFrame, channels: int) -> None:
        """Take the format of a frame, to be mixed to `channels` channels."""
        self.rate = frame.sample_rate
        self.channels = frame.layout.nb_channels
        self.layout = layout_name(frame)
        self.sample_format = frame.format.name
        self.mixer = Mixer(self.layout, self.channels, channels, self.rate)
        self._interleave: av.AudioResampler | None = None
        if frame.format.is_planar and self.channels > _PLANES:
            self._interleave = av.AudioResampler(format=frame.format.packed.name)

    def describes(self, frame: av.AudioFrame) -> bool:
        """Return whether a frame has this format."""
        return (self.rate, self.layout, self.sample_format) == (
            frame.sample_rate,
            layout_name(frame),
            frame.format.name,
        )

    def to_float(self, frame: av.AudioFrame) -> np.ndarray:
        """Return samples as float32 [channels, n], full scale +-1 unless they are floats."""
        if self._interleave is None:
            return _to_float(frame, self.channels)
        parts = self._interleave.resample(frame)
        return np.concatenate([_to_float(part, self.channels) for part in parts], axis=1)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One decoded frame.

    Attributes:
        silence: Samples of silence before it.
        start: Seconds of sound and silence before it.
        samples: Float32 [channels, n] as decoded; full scale +-1 unless `floating`.
        format: Its format.
    """

    silence: int
    start: Fraction
    samples: np.ndarray
    format: Format

    @property
    def floating(self) -> bool:
        """Whether the file holds floats, whose samples may have any magnitude."""
        return self.format.sample_format[:3] in ("flt", "dbl")

    @property
    def end(self) -> Fraction:
        """Seconds of sound and silence up to its end."""
        return self.start + Fraction(self.samples.shape[1], self.format.rate)

    @property
    def peak(self) -> float:
        """Largest absolute value."""
        return float(np.abs(self.samples).max())

    def first_above(self, limit: float) -> tuple[float, float] | None:
        """Find time in seconds and magnitude of the first sample beyond a limit."""
        above_N = (np.abs(self.samples) > limit).any(axis=0)
        if not above_N.any():
            return None
        place = int(above_N.argmax())
        size = float(np.abs(self.samples[:, place]).max())
        return float(self.start) + place / self.format.rate, size


def _to_float(frame: av.AudioFrame, channels: int) -> np.ndarray:
    """Convert a frame of any sample format to float32 [channels, n], full scale +-1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, and is rejected
            return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    offset = half if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - offset) / half).astype(np.float32)
