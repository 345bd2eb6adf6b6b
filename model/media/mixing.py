"""Mixes channels of any layout to one or two, and keeps sample values within full scale."""

from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np

ASSUMED = {6: "5.1", 8: "7.1"}
"""Layouts assumed if the file names none; other channel counts are averaged."""
_NAMES = {1: "mono", 2: "stereo"}

_CANCELLED = 2 / 11
"""Energy of the mean relative to that of the channels, below which they cancel out; for stereo, the
side then has ten times the energy of the middle."""
_RESTORED = 2 / 5
"""The same, above which they no longer do; for stereo, four times."""
_MEMORY = 0.25
"""Seconds over which these energies are averaged; a phase flip is noticed within thrice that."""

_LOUDEST_FLOAT = 16.0
"""Peak up to which full scale is 1: lossy codecs and float recorders exceed it."""
_QUIETEST_INT16 = 256.0
"""Peak from which full scale is evidently 32768; speech at that scale exceeds it."""
INT16_SCALE = 32768.0


def layout_name(frame: av.AudioFrame) -> str:
    """Name the layout of a frame: ``mono``, ``5.1``; ``3 channels`` if unknown."""
    count = frame.layout.nb_channels
    return _NAMES.get(count, frame.layout.name)


def mix_matrix(layout: str, channels: int, target: int) -> tuple[np.ndarray, str]:
    """Return the matrix that mixes a layout.

    Three or more channels are mixed with swresample's matrix, which is obtained from swresample
    itself; for float samples it is not normalised, so a centred voice keeps its level. Two channels
    are averaged to one, so that a voice in both keeps its level; one is duplicated to two.

    Args:
        layout: FFmpeg's name.
        channels: Its number of channels.
        target: 1 or 2.

    Returns:
        Float32 [target, channels], and a note if the layout had to be guessed, else "".
    """
    assert target in _NAMES
    if channels == target:
        return np.eye(target, dtype=np.float32), ""
    mean_OC = np.full((target, channels), 1 / channels, np.float32)
    if channels <= len(_NAMES):
        return (mean_OC if target == 1 else np.ones((2, 1), np.float32)), ""
    note = ""
    if layout == f"{channels} channels":
        if channels not in ASSUMED:
            return mean_OC, f"the layout of its {channels} channels is not known; averaged"
        layout = ASSUMED[channels]
        note = f"the layout of its {channels} channels is not known; taken for {layout}"
    unit = np.eye(channels, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(unit, format="flt", layout=layout)
    frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
    swr = av.AudioResampler(format="flt", layout=_NAMES[target], rate=48000)
    try:
        mixed = [part.to_ndarray().ravel() for part in (*swr.resample(frame), *swr.resample(None))]
    except av.error.FFmpegError:
        return mean_OC, f"there is no way to mix its layout {layout}; averaged"
    return np.concatenate(mixed).reshape(channels, target).T.astype(np.float32), note


class Mixer:
    """Mixes blocks of one layout, and detects channels that cancel each other out.

    If the mix to one channel has far less energy than its inputs, the voice is in opposite phase in
    two channels; then the strongest channel is used alone, until they no longer cancel. Energies
    are averaged over the last moment.

    Attributes:
        note: See `mix_matrix`.
        alone: Whether the strongest channel is used at the moment.
    """

    def __init__(self, layout: str, channels: int, target: int, rate: int) -> None:
        """Choose the matrix; see `mix_matrix`. The rate is in samples per second."""
        self.matrix_OC, self.note = mix_matrix(layout, channels, target)
        self._watched = target == 1 and channels > 1
        self._rate = rate
        self._mixed_energy = 0.0
        self._energy_C = np.zeros(channels)
        self._strongest = 0
        self.alone = False

    def listen(self, blocks: Iterable[np.ndarray]) -> None:
        """Analyse the first second of input, float32 [channels, n], to start correctly."""
        heard = 0
        for block_CN in blocks:
            if heard < self._rate and block_CN.any():
                self._hear(block_CN)
                heard += block_CN.shape[1]

    def mix(self, block_CN: np.ndarray) -> np.ndarray:
        """Mix float32 [channels, n] to [target, n]."""
        self._hear(block_CN)
        if self.alone:
            return block_CN[[self._strongest]]
        count_out, count_in = self.matrix_OC.shape
        if count_out == count_in:
            return block_CN
        return self.matrix_OC @ block_CN

    def _hear(self, block_CN: np.ndarray) -> None:
        if not self._watched:
            return
        kept = max(0.0, 1 - block_CN.shape[1] / (_MEMORY * self._rate))
        wide_CN = self.matrix_OC.T * block_CN
        self._energy_C = kept * self._energy_C + np.square(wide_CN).sum(axis=1, dtype=np.float64)
        mixed_N = wide_CN.sum(axis=0)
        self._mixed_energy = kept * self._mixed_energy + float(np.square(mixed_N).sum())
        whole = float(self._energy_C.sum())
        if whole > 0:
            share = self._mixed_energy / whole
            if not self.alone:  # and then keep it: another may be its opposite
                self._strongest = int(self._energy_C.argmax())
            self.alone = share < (_RESTORED if self.alone else _CANCELLED)


def full_scale(peak: float) -> float | None:
    """Infer the full scale of float samples from the peak of their first seconds.

    Returns:
        1 or 32768; None if neither is evident.
    """
    if peak <= _LOUDEST_FLOAT:
        return 1.0
    return INT16_SCALE if _QUIETEST_INT16 <= peak <= INT16_SCALE else None


def largest_sample(scale: float) -> float:
    """Return the largest absolute value at a full scale of 1 or 32768."""
    return _LOUDEST_FLOAT if scale == 1 else INT16_SCALE
