"""Changes the sample rate of a stream of blocks, with exact lengths."""

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np


class Resampler:
    """Changes the sample rate of a stream of blocks with FFmpeg's swresample.

    N samples become exactly ceil(N * target / source), at the same times: the first output sample
    coincides with the first input sample, and the last input sample is included. swresample alone
    rounds the length either way and drops inputs shorter than its filter; here it is fed silence at
    the end, and its surplus is cut.
    """

    def __init__(self, source_rate: int, target_rate: int, *, channels: int) -> None:
        """Choose the rates (samples per second) and the channel count (1 or 2)."""
        assert channels in (1, 2)
        self._source, self._target = source_rate, target_rate
        self._channels = channels
        self._layout = "mono" if channels == 1 else "stereo"
        self._swr = av.AudioResampler(format="fltp", layout=self._layout, rate=target_rate)
        self._taken = self._given = 0

    def push(self, samples_CN: np.ndarray) -> np.ndarray:
        """Push float32 [channels, n]; return what is ready, float32 [channels, m], m >= 0."""
        self._taken += samples_CN.shape[1]
        if self._source == self._target or not samples_CN.shape[1]:
            return samples_CN
        return self._collect(self._swr.resample(self._frame(samples_CN)))

    def push_silence(self, samples: int) -> Iterator[np.ndarray]:
        """Push ``samples`` of silence; yield float32 [channels, m], at most a second each."""
        seconds, rest = divmod(samples, self._source)
        for second in range(seconds):
            if second == 0:  # the filter is shorter, and contains only silence from here on
                yield self.push(np.zeros((self._channels, self._source), np.float32))
            else:
                self._taken += self._source
                self._given += self._target
                yield np.zeros((self._channels, self._target), np.float32)
        yield self.push(np.zeros((self._channels, rest), np.float32))

    def finish(self) -> np.ndarray:
        """Return the rest, float32 [channels, m]; the object is then exhausted."""
        if self._source == self._target or not self._taken:
            return np.zeros((self._channels, 0), np.float32)
        silence = np.zeros((self._channels, self._source // 5), np.float32)
        frames = self._swr.resample(self._frame(silence)) + self._swr.resample(None)
        whole = -(-self._taken * self._target // self._source)
        left = whole - self._given
        rest = self._collect(frames)[:, :left]
        assert rest.shape[1] == left
        return rest

    def _frame(self, samples_CN: np.ndarray) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples_CN), format="fltp", layout=self._layout
        )
        frame.sample_rate = self._source
        frame.time_base = Fraction(1, self._source)
        return frame

    def _collect(self, frames: list[av.AudioFrame]) -> np.ndarray:
        blocks = [np.zeros((self._channels, 0), np.float32)]
        blocks += [np.asarray(frame.to_ndarray(), np.float32) for frame in frames]
        samples_CN = np.concatenate(blocks, axis=1)
        self._given += samples_CN.shape[1]
        return samples_CN
