"""Record a stream: sound through a session into a file, and what ran when."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from livetalk_kernels.errors import CommError, NumericsError, UserError
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.runtime.ranks.watchdog import Watchdog
from livetalk_kernels.runtime.timeline import Timeline

from ..media.audio import AudioReader
from ..media.frames import FrameWriter
from ..media.writer import BackgroundWriter
from ..pipeline import Pipeline
from ..stream.chunk import Frames
from ..stream.session import Session
from ..stream.team import Team
from . import common
from .interrupts import Interrupts, left_behind
from .progress import progress

_BAD_INPUT = 2  # exit code
_RESCUE = 1.8  # seconds to finish the video after the loss of a rank; the watchdog allows 2
_KEPT_RANGES = 1 << 17  # per lane of a timeline: hours of a stream


def record(
    reader: AudioReader,
    session: Session,
    open_output: Callable[[], FrameWriter],
    team: Team,
    watchdog: Watchdog | None,
    timeline: Timeline,
) -> tuple[int, UserError | None, BackgroundWriter]:
    """Push the sound through the session into a file, which is completed whatever happens.

    The progress counts frames that are made; a few of them may still be queued for writing. The
    file is still open when the watchdog judges a message that was not delivered: if another rank is
    lost it completes the file and ends this process.

    Returns:
        The exit code, any error of an input or the output, and the completed file.
    """
    outcome, failure = 0, None
    interrupts = Interrupts(stopping=None if watchdog is None else watchdog.stopping)
    with interrupts:
        # An interrupt between these two calls would leave the file open.
        interrupts.hold()
        writer = BackgroundWriter(open_output(), timeline=timeline)
        interrupts.left = left_behind(writer.part)
        if watchdog is not None:
            watchdog.on_failure = partial(writer.rescue, _RESCUE)
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
                    if watchdog is not None:
                        watchdog.await_verdict()
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


def nothing_written(audio: Path, outcome: int, failure: UserError | None) -> int:
    """Explain why there are no frames, unless already done; return the exit code.

    Raises:
        UserError: Something is wrong with an input or the output, or the sound is too short.
    """
    if failure is not None:
        raise failure
    if outcome == 0:
        raise UserError(f"{audio}: shorter than one frame; record at least 0.04 s")
    if outcome == common.INTERRUPTED:
        common.note("stopped before the first frame; nothing was written")
    return outcome


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


def write_timeline(path: Path, timeline: Timeline, argv: Sequence[str]) -> None:
    """Write the trace of a command line's run, completely or not at all."""
    facts = {"command": ["livetalk", *argv], "machine": machine()}
    write_json(path, timeline.trace(facts), indent=None)
