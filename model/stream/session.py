"""The streaming session: audio goes in as it comes, frames come out as they are decoded."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from livetalk_kernels.runtime.lanes import Handle, InlineLane, Lane, open_lane
from livetalk_kernels.runtime.timeline import MAIN, Timeline

from ..avatar import Avatar
from ..config import NEW_FRAMES
from ..dit import DiT
from ..encoders.audio import AudioEncoder, AudioStream, as_samples
from ..vae import VAE
from .chunk import ChunkGenerator, Frames, StreamOptions
from .graphs import StreamCalls
from .stats import CHUNK, StageClock, StreamStats
from .team import Team


class Session:
    """One stream: push audio of any length as it comes, take frames as they are made.

    Use it as a context manager. `push` and `finish` accept the audio at once and return an
    iterator that computes as it is consumed; frames that were not consumed come with the next
    call. Where there is a lane beside the main one, the audio of the next chunk is encoded there if
    it is pushed before this chunk is begun.
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
        lane: Lane | None = None,
        timeline: Timeline | None = None,
        team: Team | None = None,
        calls: StreamCalls | None = None,
    ) -> None:
        """Prepare the stream; the clock of the start-up latency starts here.

        Args:
            dit: The transformer.
            vae: The VAE.
            audio_encoder: The audio encoder.
            avatar: Whom to animate.
            options: How.
            reuse: False: the published schedule.
            lane: Where the next chunk's audio is encoded and the decoder warmed up, closed with the
                session; by default what is worth it on the device. In a team the decoder is warmed
                up inline, since that communicates with other ranks.
            timeline: Where the stages are recorded.
            team: The ranks that share the work, of which this is rank 0; one alone by default.
            calls: CUDA graphs of the models' methods; by default the methods.

        Raises:
            UserError: The picture cannot be shared among so many ranks.
        """
        self._team = Team() if team is None else team
        assert self._team.leads, "the other ranks follow"
        self._team.grid(avatar.size)  # refused before the others hear of it
        self._team.tell({"what": "session", "options": options.to_json()}, avatar.to_bytes)
        self.options = options
        self.stats = StreamStats(fps=float(options.fps))
        self._rate = audio_encoder.sample_rate
        self._clock = StageClock(dit.device, timeline, phase=self._team.phase)
        self._audio: AudioStream | None = AudioStream(audio_encoder, fps=options.fps)
        self._lane = lane or open_lane(dit.device)
        self._chunks: ChunkGenerator | None = ChunkGenerator(
            dit,
            vae,
            avatar,
            options,
            reuse=reuse,
            clock=self._clock,
            lane=InlineLane() if self._team.size > 1 else self._lane,
            team=self._team,
            calls=calls,
        )
        self._ahead: Handle[Tensor] | None = None  # the next chunk's audio windows
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
        """Close; after Ctrl-C the other ranks of a team are not waited for."""
        self.close(finish_chunk=not isinstance(error, KeyboardInterrupt))

    def close(self, *, finish_chunk: bool = True) -> None:
        """Drop all state; frames not taken are lost. Closing twice does no harm.

        Args:
            finish_chunk: In a team, compute the running chunk to its end, since the other ranks are
                in the middle of it too; False where they are gone.
        """
        self._closed = True
        running, self._running = self._running, None
        try:
            if finish_chunk and running is not None and self._team.size > 1:
                for _ in running:
                    pass
        finally:
            self._lane.close()
            self._ahead = None
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
        return math.ceil(self._received * self.options.fps / self._rate)

    @property
    def wants_audio(self) -> bool:
        """Whether to push more audio, where it is at hand, before the next frames are taken.

        It would be encoded beside the next chunk. Never where nothing runs beside.
        """
        return self._lane.concurrent and self._received < self._boundary(self._started + 2)

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
                self._running = None
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
        frames, need = NEW_FRAMES, self._need()
        if self._ahead is None and self._waiting < need:
            frames = self.total_frames - self._started * NEW_FRAMES
            if not self._finished or frames <= 0:
                return None
        elif self._finished:
            frames = min(NEW_FRAMES, self.total_frames - self._started * NEW_FRAMES)
            if frames <= 0:
                return None
        ahead, self._ahead = self._ahead, None
        encode = ahead.result if ahead else partial(self._encode, self._take(need))
        self._started += 1
        last = self._finished and self.total_frames <= self._started * NEW_FRAMES
        self._whole = not last
        return self._chunk(encode, frames, last)

    def _chunk(self, encode: Callable[[], Tensor], frames: int, last: bool) -> Iterator[Frames]:
        assert self._chunks is not None
        with self._clock.timeline.range(CHUNK, MAIN):
            windows = encode()
            self._team.tell(
                {"what": "chunk", "frames": frames, "last": last, "windows": list(windows.shape)}
            )
            yield from self._chunks.chunk(
                self._team.share(windows), frames=frames, last=last, meanwhile=self._look_ahead
            )

    def _encode(self, samples: NDArray[np.float32], lane: str = MAIN) -> Tensor:
        """The next chunk's audio windows."""
        assert self._audio is not None
        with torch.inference_mode(), self._clock.stage("audio encoder", lane):
            return self._audio.push(samples)[None]

    def _look_ahead(self) -> None:
        """Send the next chunk's audio to the lane, if all of it is known and anything is gained."""
        need = self._need()
        known = self._waiting >= need
        if self._finished:  # what is missing is silence
            known = self.total_frames > self._started * NEW_FRAMES
        if known and self._lane.concurrent:
            lane = self._lane.name
            self._ahead = self._lane.submit(partial(self._encode, self._take(need), lane))

    def _need(self) -> int:
        """Samples of the next chunk."""
        return self._boundary(self._started + 1) - self._boundary(self._started)

    def _end_chunk(self) -> None:
        self._running = None
        stages: dict[str, float] = self._clock.collect()
        if self._started == 1:  # the first chunk's stages up to the first frame were collected
            for name, seconds in self.stats.startup.items():
                if not name.startswith("prepare"):
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
