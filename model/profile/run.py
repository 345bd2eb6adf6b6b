"""Run a stream to be measured: warm-up, then chunks, as fast as they come."""

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
    """How much is run.

    Attributes:
        warmup: Chunks that are not measured: the first compiles, allocates and fills caches.
        chunks: Chunks that are.

    Raises:
        UserError: A number is out of range.
    """

    warmup: int
    chunks: int

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        if self.chunks < 1:
            raise UserError(f"--chunks {self.chunks}: must be 1 or more")
        if self.warmup < 1:
            raise UserError(f"--warmup {self.warmup}: must be 1 or more; the first chunk is cold")


class Pace(Protocol):
    """Says when the next measured chunk may begin."""

    def wait(self) -> bool:
        """Wait; False: no more are wanted."""


class Observer(Protocol):
    """Hears how far the run is."""

    def opened(self, session: Session) -> None:
        """The session has begun."""

    def chunk(self, index: int) -> None:
        """A chunk is done, the warm-up's included."""

    def interrupted(self) -> bool:
        """Ctrl-C: whether to go on as if all chunks were done."""

    def closing(self) -> None:
        """All chunks are done; the session is about to close."""


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
    """Make chunk after chunk of made-up speech, each of them whole.

    Without a pace the next chunk's sound is there before it is needed, as in a file, so that what
    runs beside does; with one, each chunk is begun and ended by itself.

    Args:
        pipeline: The model; on rank 0, while the others follow.
        avatar: Whom to animate.
        options: How.
        timeline: Where all is recorded.
        length: How much; with a pace, how many chunks at most.
        write: Takes the frames.
        observer: Hears how far it is.
        pace: Asked before each measured chunk.
    """
    total = length.warmup + length.chunks
    with pipeline.session(avatar, options=options, timeline=timeline) as session:
        observer.opened(session)
        told = 0
        try:
            for index in range(total):
                if pace is not None and index >= length.warmup and not pace.wait():
                    break
                # The first measured chunk begins when the warm-up is over, and not before.
                more = pace is None and index + 1 not in (length.warmup, total)
                made = session.push(speech(index, fps=options.fps))
                while not (more and session.wants_audio):
                    frames = next(made, None)
                    while told < session.stats.count:
                        observer.chunk(told)
                        told += 1
                    if frames is None:
                        break
                    write(frames)
        except KeyboardInterrupt:
            if not observer.interrupted():
                raise
        observer.closing()
