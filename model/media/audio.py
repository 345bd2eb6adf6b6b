"""Reads sound files, in any container, rate and channel count, as blocks of 16 kHz mono."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .sound_decoder import SoundDecoder

SAMPLE_RATE = 16000
"""Samples per second that the audio encoder expects."""


class AudioReader:
    """A sound file, or a video file's sound track, as a stream of 16 kHz mono blocks.

    Two channels are averaged, more are mixed by FFmpeg's matrix, then resampled: N samples at rate
    r become ceil(N * 16000 / r). Gaps in the time stamps become silence; see `SoundDecoder`. Memory
    does not grow with the file's length. Can be read once, as a context manager:

        with AudioReader("speech.mp3") as reader:
            for block_N in reader:
                ...

    Attributes:
        path: The file.
        source_rate: Samples per second in the file, at its start.
        channels: Channels in the file, at its start.
        codec: FFmpeg's name of the codec.
        declared_samples: Length in the header, per channel at `source_rate`; None if absent.
        notes: Decisions made, one line each; complete after the last block.
        warnings: Problems found, one line each; complete after the last block.
    """

    def __init__(
        self, path: Path | str, *, block: int = SAMPLE_RATE, track: int | None = None
    ) -> None:
        """Open the file and decode its first seconds.

        Args:
            path: The file.
            block: Samples per block; the last one may be shorter.
            track: Which sound track, counted from 1; None for FFmpeg's choice among those that
                can be decoded.

        Raises:
            UserError: See `SoundDecoder`.
        """
        self._decoder = SoundDecoder(path, rates=(SAMPLE_RATE,), channels=1, track=track)
        self._block = block
        self.path = self._decoder.path
        self.source_rate = self._decoder.source_rate
        self.channels = self._decoder.source_channels
        self.codec = self._decoder.codec
        self.declared_samples = self._decoder.declared_samples
        self.notes = self._decoder.notes
        self.warnings = self._decoder.warnings

    @property
    def decoded_samples(self) -> int:
        """Samples per channel at `source_rate` decoded so far, including silence in gaps."""
        return self._decoder.decoded_samples

    @property
    def declared_seconds(self) -> float | None:
        """Length in the header in seconds; None if absent."""
        return None if self.declared_samples is None else self.declared_samples / self.source_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield float32 [block] (the last one [<= block]), full scale +-1.

        Raises:
            UserError: See `SoundDecoder`.
        """
        waiting_N = np.zeros(0, np.float32)
        for samples_1N in self._decoder:
            waiting_N = np.concatenate([waiting_N, samples_1N[0]])
            while len(waiting_N) >= self._block:
                yield waiting_N[: self._block]
                waiting_N = waiting_N[self._block :]
        for start in range(0, len(waiting_N), self._block):
            yield waiting_N[start : start + self._block]

    def report(self) -> dict[str, Any]:
        """Report decisions (`track`, `layout`, `gaps`); complete after the last block."""
        return self._decoder.report()

    def close(self) -> None:
        """Close the file."""
        self._decoder.close()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()
