"""The producer thread's side of a session: audio in, chunk after chunk, frames out."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Condition

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livetalk_kernels.runtime.lanes import Handle, InlineLane, Lane
from livetalk_kernels.runtime.timeline import MAIN, Timeline

from ..avatar import Avatar
from ..config import NEW_FRAMES
from ..dit import DiT
from ..encoders.audio import AudioEncoder, AudioStream
from ..vae import VAE
from .chunk import ChunkGenerator, Frames, StreamOptions
from .graphs import StreamCalls
from .producer import Source
from .stats import CHUNK, StageClock
from .team import Team

QUEUED_CHUNKS = 2
"""Chunks whose frames may be queued; a session whose frames nobody takes is then parked."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Frames as decoded.

    Attributes:
        frames: Uint8 [n, H, W, 3].
        startup: For the session's first frames: returns the seconds of all stages so far.
    """

    frames: Frames
    startup: Callable[[], dict[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkEnd:
    """Marks that all frames of a chunk have been taken.

    Attributes:
        stages: Stage -> seconds; for the first chunk, from its first frames on.
        seconds: Seconds of the whole chunk.
        whole: Whether it is not the last, shorter one.
    """

    stages: dict[str, float]
    seconds: float
    whole: bool


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The next chunk.

    Attributes:
        encode: Returns its audio windows.
        frames: Number of frames needed.
        last: Whether no other follows.
    """

    encode: Callable[[], Tensor]
    frames: int
    last: bool


class _LeftError(Exception):
    """Nobody takes the chunk's frames."""


class Production(Source):
    """Makes a session's chunks; the session itself is on the consumer's side.

    Attributes:
        options: Options of the stream.
        received: Samples pushed so far.
        finished: Whether the audio has ended.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        audio_encoder: AudioEncoder,
        avatar: Avatar,
        options: StreamOptions,
        *,
        changed: Condition,
        reuse: bool,
        lane: Lane,
        timeline: Timeline | None,
        team: Team,
        calls: StreamCalls | None,
    ) -> None:
        """Prepare nothing yet; arguments as in `Session`, and the producer's ``changed``."""
        self.options = options
        self.received = 0
        self.finished = False
        self._changed, self._team, self._lane = changed, team, lane
        self._device, self._rate = dit.device, audio_encoder.sample_rate
        self._clock = StageClock(dit.device, timeline, phase=team.phase)
        self._audio: AudioStream | None = AudioStream(audio_encoder, fps=options.fps)
        self._avatar = avatar.to_bytes() if team.size > 1 else b""  # for the other ranks
        self._prepare: Callable[[], ChunkGenerator] | None = partial(
            ChunkGenerator,
            dit,
            vae,
            avatar,
            options,
            reuse=reuse,
            clock=self._clock,
            lane=InlineLane() if team.size > 1 else lane,
            team=team,
            calls=calls,
        )
        self._chunks: ChunkGenerator | None = None
        self._ahead: Handle[Tensor] | None = None  # the next chunk's audio windows
        self._pending: deque[NDArray[np.float32]] = deque()
        self._waiting = 0  # number of samples in _pending
        self._started = 0  # number of chunks in all
        self._making = False
        self._made: deque[Piece | ChunkEnd] = deque()
        self._queued = 0  # chunks queued whose end nobody has taken, or in progress
        self._running = False  # whether frames have been made

    # Called by the consumer, in any thread.

    def push(self, block: NDArray[np.float32]) -> None:
        """Receive audio."""
        with self._changed:
            self._pending.append(block)
            self._waiting += len(block)
            self.received += len(block)
            self._changed.notify_all()

    def finish(self) -> None:
        """Note that the audio has ended."""
        with self._changed:
            self.finished = True
            self._changed.notify_all()

    def take(self) -> Piece | ChunkEnd | None:
        """Wait for the next result; None if the audio so far makes no more frames.

        Raises:
            Exception: What has ended the session; results from before come first.
        """
        with self._changed:
            if not self._made and self._coming():
                with self._team.phase("wait"):
                    self._changed.wait_for(lambda: self._made or not self._coming())
            if self._made:
                item = self._made.popleft()
                if isinstance(item, ChunkEnd):
                    self._queued -= 1
                    self._changed.notify_all()  # there is room now
                return item
            if self.error is not None:
                raise self.error
            return None

    @property
    def total_frames(self) -> int:
        """Number of frames that the audio received so far requires."""
        return math.ceil(self.received * self.options.fps / self._rate)

    @property
    def wants_audio(self) -> bool:
        """See `Session.wants_audio`."""
        return self._lane.concurrent and self.received < self._boundary(self._started + 2)

    def leave(self) -> None:
        """Also drop queued frames."""
        super().leave()
        self._made.clear()

    # Called by the producer, in its thread.

    def open(self) -> None:
        """Create the generator, on all ranks."""
        assert self._prepare is not None
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own
        self.shared = self._team.size > 1
        message = {"what": "session", "session": self.number, "options": self.options.to_json()}
        self._team.send(message, lambda: self._avatar)
        self._chunks = self._prepare()
        self._prepare, self._avatar = None, b""
        self.shared = False

    def ready(self) -> bool:
        """Return whether a chunk's audio is there, and there is room for it."""
        return self._queued < QUEUED_CHUNKS and self.error is None and self._wanted() > 0

    def make(self) -> None:
        """Make a chunk; on a single rank, stop if the session is left."""
        begin = time.perf_counter()
        with self._changed:
            plan = self._next_chunk()
        try:
            self._run(plan)
        except _LeftError:
            return
        stages, seconds = self._clock.collect(), time.perf_counter() - begin
        with self._changed:
            self._making = False
            self._deliver(ChunkEnd(stages=stages, seconds=seconds, whole=not plan.last))

    def close(self) -> None:
        """Tell the other ranks to close."""
        self._team.send({"what": "close", "session": self.number})

    def free(self) -> None:
        """Drop the generator and queued audio."""
        self._lane.close()
        self._ahead = self._chunks = self._audio = self._prepare = None
        self._pending.clear()
        self._waiting = 0

    def _run(self, plan: _Plan) -> None:
        assert self._chunks is not None
        with self._clock.timeline.range(CHUNK, MAIN):
            windows = plan.encode()
            self.shared = self._team.size > 1
            self._team.send(
                {
                    "what": "chunk",
                    "session": self.number,
                    "frames": plan.frames,
                    "last": plan.last,
                    "windows": list(windows.shape),
                }
            )
            chunk = self._chunks.chunk(
                self._team.share(windows),
                frames=plan.frames,
                last=plan.last,
                launched=self._launched,
            )
            for frames in chunk:
                startup = None if self._running else self._clock.cut()
                self._running = True
                self._deliver(Piece(frames=frames, startup=startup))
                self._stop_if_left()
            self.shared = False

    def _launched(self, step: int) -> None:
        if step == 0:
            self._look_ahead()
        self._stop_if_left()

    def _stop_if_left(self) -> None:
        if self.left and self._team.size == 1:
            raise _LeftError

    def _deliver(self, item: Piece | ChunkEnd) -> None:
        with self._changed:
            if not self.left:
                self._made.append(item)
                self._changed.notify_all()

    def _encode(self, samples: NDArray[np.float32], lane: str = MAIN) -> Tensor:
        """Compute the next chunk's audio windows."""
        assert self._audio is not None
        with torch.inference_mode(), self._clock.stage("audio encoder", lane):
            return self._audio.push(samples)[None]

    def _look_ahead(self) -> None:
        """Submit the next chunk's audio to the lane, if all of it is known and it pays off."""
        with self._changed:
            if not self._lane.concurrent or not self._wanted():
                return
            samples = self._take(self._need())
        self._ahead = self._lane.submit(partial(self._encode, samples, self._lane.name))

    # Called with the lock held.

    def _coming(self) -> bool:
        """Return whether more will come without more audio."""
        active = not self.left and self.error is None
        return active and (self._making or self._wanted() > 0)

    def _wanted(self) -> int:
        """Return the frames of the next chunk if its audio is there or has ended; else 0."""
        left = self.total_frames - self._started * NEW_FRAMES
        if self.finished:
            return max(0, min(NEW_FRAMES, left))
        known = self._ahead is not None or self._waiting >= self._need()
        return NEW_FRAMES if known else 0

    def _next_chunk(self) -> _Plan:
        """Start the next chunk."""
        frames, ahead, self._ahead = self._wanted(), self._ahead, None
        encode = ahead.result if ahead else partial(self._encode, self._take(self._need()))
        self._started += 1
        self._queued += 1
        self._making = True
        last = self.finished and self.total_frames <= self._started * NEW_FRAMES
        return _Plan(encode=encode, frames=frames, last=last)

    def _need(self) -> int:
        """Return the number of samples that the next chunk needs."""
        return self._boundary(self._started + 1) - self._boundary(self._started)

    def _boundary(self, chunk: int) -> int:
        """Return the sample at which a chunk's new frames begin."""
        return round(chunk * NEW_FRAMES * self._rate / self.options.fps)

    def _take(self, count: int) -> NDArray[np.float32]:
        """Remove the oldest ``count`` pending samples, padded with silence."""
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
