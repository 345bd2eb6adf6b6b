"""The streaming session: audio goes in as it comes, frames come out as they are decoded."""

import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from numpy.typing import ArrayLike
from torch import Tensor

from livetalk_kernels.runtime.lanes import Lane, open_lane
from livetalk_kernels.runtime.timeline import Timeline

from ..avatar import Avatar
from ..dit import DiT
from ..encoders.audio import AudioEncoder, as_samples
from ..vae import VAE
from .chunk import Frames, StreamOptions
from .graphs import StreamCalls
from .producer import Producer
from .production import ChunkEnd, Production
from .stats import StreamStats
from .team import Team


class Session:
    """One stream: push audio of any length as it comes, take frames as they are made.

    Use it as a context manager. `push` and `finish` accept the audio at once, and return an
    iterator over the frames that the audio so far makes; frames that were not taken come with the
    next call. A producer thread makes them, even while nobody takes any, until those of two chunks
    are queued. Any number of sessions may be open and used at the same time, each by its own thread
    or all by one; their chunks are made alternately, and each session's frames are the same as if
    it ran alone. A session that breaks off does not affect the others.

    With a concurrent lane, the audio of the next chunk is encoded there if it is pushed before this
    chunk is begun.
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
        producer: Producer | None = None,
    ) -> None:
        """Prepare the stream; the start-up latency is measured from here.

        Waits if a chunk of another session is being made.

        Args:
            dit: The transformer.
            vae: The VAE.
            audio_encoder: The audio encoder.
            avatar: Avatar to animate.
            options: Options of the stream.
            reuse: False for the published schedule.
            lane: Where the next chunk's audio is encoded and the decoder warmed up, closed with the
                session; by default whatever pays off on the device. In a team the decoder is warmed
                up inline, since that communicates with other ranks.
            timeline: Records the stages.
            team: Ranks that share the work, of which this is rank 0; by default just one.
            calls: CUDA graphs of the models' methods; by default the methods.
            producer: Makes the chunks; all sessions open at the same time with the same models or
                team must share one. By default a separate one.

        Raises:
            UserError: The picture cannot be divided among that many ranks.
        """
        team = Team() if team is None else team
        assert team.leads, "the other ranks follow"
        team.grid(avatar.size)  # rejected before the others receive it
        self.options = options
        self.stats = StreamStats(fps=float(options.fps))
        self._closed = False
        self._producer = Producer(team.phase) if producer is None else producer
        self._production = Production(
            dit,
            vae,
            audio_encoder,
            avatar,
            options,
            changed=self._producer.changed,
            reuse=reuse,
            lane=lane or open_lane(dit.device),
            timeline=timeline,
            team=team,
            calls=calls,
        )
        self._producer.open(self._production)
        weakref.finalize(self, self._producer.leave, self._production)

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after Ctrl-C without waiting."""
        self.close(finish_chunk=not isinstance(error, KeyboardInterrupt))

    def close(self, *, finish_chunk: bool = True) -> None:
        """Drop all state, on all ranks; frames not taken are lost. Closing twice is harmless.

        Args:
            finish_chunk: Wait until the memory is free: in a team until the running chunk has
                ended, since the other ranks are in the middle of it too, else until its step has.
                False: don't wait, if the other ranks are gone or the program is about to end.
        """
        if self._closed:
            return
        self._closed = True
        if finish_chunk:
            self._producer.close(self._production)
        else:
            self._producer.leave(self._production)

    def push(self, samples: ArrayLike | Tensor) -> Iterator[Frames]:
        """Push audio; return the frames that it completes.

        Args:
            samples: Mono audio at 16 kHz, any length (also 0): float in -1..1 or int16.

        Returns:
            Iterator over uint8 [n, H, W, 3] frames, in order. It waits for frames that are being
            made, and raises whatever has ended the session, such as NumericsError.

        Raises:
            UserError: The samples are not one-dimensional, contain NaN or Inf, or have another
                type.
            RuntimeError: The session is finished or closed.
        """
        self._require_open()
        self._production.push(as_samples(samples))
        return self._frames()

    def finish(self) -> Iterator[Frames]:
        """Declare that the audio has ended; return the remaining frames.

        The last chunk's audio is padded with silence and its frames are cut to the audio's length:
        the video is at most one frame longer than the audio, never shorter.

        Returns:
            Iterator over uint8 [n, H, W, 3] frames, in order, like that of `push`.

        Raises:
            RuntimeError: The session is finished or closed.
        """
        self._require_open()
        self._production.finish()
        return self._frames()

    @property
    def production(self) -> Production:
        """The maker of the frames, which holds the session's memory."""
        return self._production

    @property
    def total_frames(self) -> int:
        """Number of frames that the audio received so far requires."""
        return self._production.total_frames

    @property
    def wants_audio(self) -> bool:
        """Whether to push more audio, if available, before the next frames are taken.

        It would be encoded concurrently with the next chunk. Always False without concurrency.
        """
        return self._production.wants_audio

    def _require_open(self) -> None:
        if self._closed or self._production.finished:
            raise RuntimeError("the session is over; open a new one with pipeline.session(avatar)")

    def _frames(self) -> Iterator[Frames]:
        while not self._closed:
            try:
                made = self._production.take()
            except Exception:
                self.close()  # the state of a broken chunk is useless
                raise
            if made is None:
                return
            if isinstance(made, ChunkEnd):
                self._end_chunk(made)
                continue
            self.stats.delivered(len(made.frames))
            if made.startup is not None:
                self.stats.startup = made.startup()
            yield made.frames

    def _end_chunk(self, chunk: ChunkEnd) -> None:
        stages = dict(chunk.stages)
        if not self.stats.count:
            for name, seconds in self.stats.startup.items():
                if not name.startswith("prepare"):
                    stages[name] = stages.get(name, 0.0) + seconds
        self.stats.chunk_done(stages, chunk.seconds, whole=chunk.whole)
