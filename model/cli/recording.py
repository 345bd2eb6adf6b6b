"""Record a stream: sound through a session into a file, and what ran when."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from livetalk_kernels.errors import CommError, NumericsError, UserError
from livetalk_kernels.outputs import write_json
from livetalk_kernels.runtime.timeline import Timeline

from ..media.audio import AudioReader
from ..media.writer import BackgroundWriter
from ..pipeline import Pipeline
from ..stream.chunk import Frames
from ..stream.session import Session
from ..stream.team import Team
from . import common
from .interrupts import Interrupts
from .progress import progress

_BAD_INPUT = 2  # exit code
_KEPT_RANGES = 1 << 17  # per lane of a timeline: hours of a stream


def record(
    reader: AudioReader,
    session: Session,
    open_output: Callable[[], BackgroundWriter],
    interrupts: Interrupts,
    team: Team,
    lost: Callable[[], None] | None,
) -> tuple[int, UserError | None, BackgroundWriter]:
    """Push the sound through the session into a file, which is completed whatever happens.

    The progress counts frames that are made; a few of them may still be queued for writing.
    ``lost`` is called when a message was not delivered, while the file is still open: if another
    rank is lost it completes the file and ends this process.

    Returns:
        The exit code, any error of an input or the output, and the completed file.
    """
    outcome, failure = 0, None
    with interrupts:
        # An interrupt between these two calls would leave the file open.
        interrupts.hold()
        writer = open_output()
        try:
            with writer:
                interrupts.release()
                try:
                    with progress(reader.declared_seconds, session) as advance:
                        for frames in frames_of(reader, session, team):
                            interrupts.hold()
                            with team.phase("write"):
                                writer.write(frames)
                            interrupts.release()
                            advance(len(frames))
                except NumericsError as error:
                    common.note(f"error: {error}")
                    outcome = 1
                except UserError as error:
                    outcome, failure = _BAD_INPUT, error
                except CommError:
                    if lost is not None:
                        lost()
                    raise
                interrupts.hold()  # complete the file undisturbed
                with team.phase("finish"):
                    writer.close()
        except KeyboardInterrupt:
            outcome = common.INTERRUPTED
        except UserError as error:  # the end of the file could not be written
            outcome, failure = _BAD_INPUT, failure or error
        except Exception:
            if writer.frames:
                kept = common.plural(writer.frames, "frame")
                common.note(f"wrote {writer.path}: {kept} (stopped early)")
            raise
    return outcome, failure, writer


def frames_of(reader: AudioReader, session: Session, team: Team) -> Iterator[Frames]:
    """Make the frames of all the sound, block by block."""
    blocks = iter(reader)
    while True:
        with team.phase("wait"):  # the sound may be live
            block = next(blocks, None)
        if block is None:
            break
        made = session.push(block)
        while not session.wants_audio and (frames := next(made, None)) is not None:
            yield frames
    yield from session.finish()


def open_timeline(wanted: bool, pipeline: Pipeline, team: Team) -> Timeline:
    """Make a timeline, which keeps what ran only where that is wanted; all ranks call it."""
    kept = _KEPT_RANGES if wanted else 0
    nvtx = bool(kept) and pipeline.device.type == "cuda"
    timeline = Timeline(pipeline.device, rank=team.world.rank, capacity=kept, nvtx=nvtx)
    if wanted:
        with team.phase("wait"):  # for rank 0, which makes the avatar
            timeline.align(team.gather)
    return timeline


def write_timeline(path: Path, timeline: Timeline, facts: dict[str, Any]) -> None:
    """Write the trace, completely or not at all."""
    write_json(path, timeline.trace(facts), indent=None)
