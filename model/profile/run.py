"""Runs a stream to be measured: warm-up, then chunks, as fast as possible."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.timeline import Timeline

from ..avatar import Avatar
from ..media.synthetic import speech
from ..pipeline import Pipeline
from ..stream.chunk import Frames, StreamOptions
from ..stream.session import Session


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long to run.

    Attributes:
        warmup: Chunks that are not measured: the first compiles, allocates and fills caches.
        chunks: Chunks that are measured.

    Raises:
        UserError: A number is out of range.
    """

    warmup: int
    chunks: int

    def __post_init__(self) -> None:
        """Reject lengths that measure nothing."""
        if self.chunks < 1:
            raise UserError(f"--chunks {self.chunks}: must be 1 or more")
        if self.warmup < 1:
            raise UserError(f"--warmup {self.warmup}: must be 1 or more; the first chunk is cold")


class Pace(Protocol):
    """Decides when the next measured chunk may begin."""

    def wait(self) -> bool:
        """Wait; return False if no more are needed."""


class Observer(Protocol):
    """Observes the progress of the run."""

    def opened(self, session: Session) -> None:
        """Note that the session has started."""

    def chunk(self, index: int) -> None:
        """Note that a chunk is done, including those of the warm-up."""

    def interrupted(self) -> bool:
        """Handle Ctrl-C; return whether to continue as if all chunks were done."""

    def closing(self) -> None:
        """Note that all chunks are done, and the session is about to close."""


def run_stream(
    pipeline: Pipeline,
    avatar: Avatar,
    options: StreamOptions,
    timeline: Timeline,
    length: Length,
    *,
    write: Callable[[Frames], None],
    observer: Observer,
    pace: Pace | None = None,
) -> None:
    """Make chunk after chunk of synthetic speech, each of them whole.

    Without a pace the next chunk's sound is available before it is needed, as with a file, so that
    concurrent work runs concurrently; with one, each chunk is started and finished separately.

    Args:
        pipeline: The model; on rank 0, while the others follow.
        avatar: Avatar to animate.
        options: Options of the stream.
        timeline: Records everything.
        length: How long; with a pace, the maximum number of chunks.
        write: Consumes the frames.
        observer: Notified of progress.
        pace: Asked before each measured chunk.
    """
    total = length.warmup + length.chunks
    with pipeline.session(avatar, options=options, timeline=timeline) as session:
        observer.opened(session)
        reported = 0
        try:
            for index in range(total):
                if pace is not None and index >= length.warmup and not pace.wait():
                    break
                # The first measured chunk begins when the warm-up is over, and not before.
                more = pace is None and index + 1 not in (length.warmup, total)
                made = session.push(speech(index, fps=options.fps))
                while not (more and session.wants_audio):
                    frames = next(made, None)
                    while reported < session.stats.count:
                        observer.chunk(reported)
                        reported += 1
                    if frames is None:
                        break
                    write(frames)
        except KeyboardInterrupt:
            if not observer.interrupted():
                raise
        observer.closing()
