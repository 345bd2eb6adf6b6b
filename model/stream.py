"""The streaming session: audio goes in as it comes, frames come out as they are decoded."""

import math
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .avatar import Avatar
from .chunk import ChunkGenerator, Frames, StreamOptions
from .config import NEW_FRAMES
from .dit import DiT
from .encoders.audio import AudioEncoder, AudioStream, as_samples
from .stats import StageClock, StreamStats
from .vae import VAE


class Session:
    """One stream: push audio of any length as it comes, take frames as they are made.

    Use it as a context manager. `push` and `finish` accept the audio at once and return an
    iterator that computes as it is consumed; frames that were not consumed come with the next
    call.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        audio_encoder: AudioEncoder,
        avatar: Avatar,
        options: StreamOptions,
        *,
        reuse: bool = True,
    ) -> None:
        """Prepare the stream; the clock of the start-up latency starts here."""
        self.options = options
        self.stats = StreamStats(fps=options.fps)
        self._rate = audio_encoder.sample_rate
        self._clock = StageClock(dit.device)
        self._audio: AudioStream | None = AudioStream(audio_encoder, fps=options.fps)
        self._chunks: ChunkGenerator | None = ChunkGenerator(
            dit, vae, avatar, options, reuse=reuse, clock=self._clock
        )
        self._pending: deque[NDArray[np.float32]] = deque()
        self._waiting = 0  # samples in _pending
        self._received = 0  # samples in all
        self._started = 0  # chunks in all
        self._running: Iterator[Frames] | None = None
        self._whole = True  # the running chunk is not the last, which is shorter
        self._computing = 0.0
        self._finished = self._closed = False

    def __enter__(self) -> Self:
        """The session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop all state; frames not taken are lost. Closing twice does no harm."""
        self._closed = True
        self._running = None
        self._pending.clear()
        self._waiting = 0
        self._chunks = self._audio = None

    def push(self, samples: ArrayLike | Tensor) -> Iterator[Frames]:
        """Give audio; take the frames that it completes.

        Args:
            samples: Mono audio at 16 kHz, any length (also 0): float in -1..1 or int16.

        Returns:
            Iterator over uint8 [n, H, W, 3] frames, in order.

        Raises:
            UserError: The samples are not one-dimensional, hold NaN or Inf, or are of another
                type.
            RuntimeError: The session is finished or closed.
        """
        self._require_open()
        block = as_samples(samples)
        self._pending.append(block)
        self._waiting += len(block)
        self._received += len(block)
        return self._frames()

    def finish(self) -> Iterator[Frames]:
        """Tell that the audio has ended; take the remaining frames.

        The last chunk's audio is padded with silence and its frames are cut to the audio's length:
        the video is at most one frame longer than the audio, never shorter.

        Returns:
            Iterator over uint8 [n, H, W, 3] frames, in order.

        Raises:
            RuntimeError: The session is finished or closed.
        """
        self._require_open()
        self._finished = True
        return self._frames()

    @property
    def total_frames(self) -> int:
        """Frames that the audio received so far asks for."""
        return math.ceil(self._received * self.options.fps / self._rate - 1e-6)

    def _require_open(self) -> None:
        if self._closed or self._finished:
            raise RuntimeError("the session is over; open a new one with pipeline.session(avatar)")

    def _frames(self) -> Iterator[Frames]:
        while not self._closed:
            if self._running is None:
                self._running = self._next_chunk()
                if self._running is None:
                    return
            before = self.stats.elapsed
            try:
                frames = next(self._running, None)
            except BaseException:
                self.close()  # the state of a broken chunk is of no use
                raise
            self._computing += self.stats.elapsed - before
            if frames is None:
                self._end_chunk()
                continue
            first = self.stats.first_frame is None
            self.stats.delivered(len(frames))
            if first:
                self.stats.startup = self._clock.collect()
            yield frames

    def _next_chunk(self) -> Iterator[Frames] | None:
        """Start the next chunk if its audio is there, or the audio has ended."""
        start, end = (self._boundary(self._started + offset) for offset in (0, 1))
        frames, need = NEW_FRAMES, end - start
        if self._waiting < need:
            frames = self.total_frames - self._started * NEW_FRAMES
            if not self._finished or frames <= 0:
                return None
        elif self._finished:
            frames = min(NEW_FRAMES, self.total_frames - self._started * NEW_FRAMES)
            if frames <= 0:
                return None
        samples = self._take(need)
        self._started += 1
        last = self._finished and self.total_frames <= self._started * NEW_FRAMES
        self._whole = not last
        return self._chunk(samples, frames, last)

    def _chunk(self, samples: NDArray[np.float32], frames: int, last: bool) -> Iterator[Frames]:
        assert self._audio is not None and self._chunks is not None
        with torch.inference_mode(), self._clock.stage("audio encoder"):
            windows = self._audio.push(samples)[None]
        yield from self._chunks.chunk(windows, frames=frames, last=last)

    def _end_chunk(self) -> None:
        self._running = None
        stages: dict[str, float] = self._clock.collect()
        if self._started == 1:  # the first chunk's stages up to the first frame were collected
            for name, seconds in self.stats.startup.items():
                if name != "prepare":
                    stages[name] = stages.get(name, 0.0) + seconds
        self.stats.chunk_done(stages, self._computing, whole=self._whole)
        self._computing = 0.0

    def _boundary(self, chunk: int) -> int:
        """Sample at which a chunk's new frames begin."""
        return round(chunk * NEW_FRAMES * self._rate / self.options.fps)

    def _take(self, count: int) -> NDArray[np.float32]:
        """The oldest ``count`` pending samples, padded with silence."""
        taken = np.zeros(count, np.float32)
        filled = 0
        while filled < count and self._pending:
            block = self._pending.popleft()
            part = block[: count - filled]
            taken[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(block):
                self._pending.appendleft(block[len(part) :])
        self._waiting -= filled
        return taken
