"""Progress of a command: a bar or a changing line on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from livetalk_kernels.lines import one_line
from livetalk_kernels.units import duration

from . import common

if TYPE_CHECKING:
    from rich.console import Console

    from ..stream.session import Session
    from ..train.loop.loop import Progress as Trained

LINE_SECONDS = 10.0
"""Seconds between two lines without a terminal."""
_SHOWN = "loss", "agreement", "lag"  # of a training's metrics


@contextmanager
def progress(
    seconds: float | None, session: "Session", *, line_seconds: float = LINE_SECONDS
) -> Iterator[Callable[[int], None]]:
    """Show a stream's progress and real-time factor on stderr.

    Args:
        seconds: Length of the sound, if known.
        session: The stream.
        line_seconds: Time between two lines where stderr is not a terminal.

    Yields:
        Function to call with the number of frames just written.
    """
    out = common.console(stderr=True)
    if out.is_interactive:
        with _bar(out, seconds, session) as advance:
            yield advance
    else:
        yield _lines(session, line_seconds)


@contextmanager
def _bar(
    out: "Console", seconds: float | None, session: "Session"
) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.completed:.0f} frames"),
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    total = None if seconds is None else seconds * float(session.options.fps)
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("waiting for the first frame", total=total)

        def advance(frames: int) -> None:
            bar.update(task, advance=frames, description=f"{_factor(session):.2f} x real time")

        yield advance


def _lines(session: "Session", line_seconds: float) -> Callable[[int], None]:
    shown = time.monotonic()
    written = 0

    def advance(frames: int) -> None:
        nonlocal shown, written
        written += frames
        if time.monotonic() - shown < line_seconds:
            return
        shown = time.monotonic()
        made = written / float(session.options.fps)
        print(
            f"{common.plural(written, 'frame')}, {made:.1f} s of video, "
            f"{_factor(session):.2f} x real time",
            file=sys.stderr,
            flush=True,
        )

    return advance


def _factor(session: "Session") -> float:
    """Compute seconds of video made per second."""
    return session.stats.frames / session.stats.fps / session.stats.elapsed


@contextmanager
def counted(
    total: int, noun: str, *, line_seconds: float = LINE_SECONDS
) -> Iterator[Callable[[], None]]:
    """Show on stderr how many items are done, and the time left.

    Args:
        total: Number of items.
        noun: What an item is, in the singular.
        line_seconds: Time between two lines where stderr is not a terminal.

    Yields:
        Function to call after each.
    """
    out = common.console(stderr=True)
    if out.is_interactive:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        columns = MofNCompleteColumn(), TextColumn(f"{noun}s"), BarColumn(bar_width=24), Left()
        with Progress(*columns, console=out, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.update(task, advance=1)
        return
    begin = shown = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal shown, done
        done += 1
        now = time.monotonic()
        if now - shown < line_seconds:
            return
        shown = now
        left = (now - begin) / done * (total - done)
        common.note(f"{done} of {common.plural(total, noun)}, {left:.0f} s left")

    yield advance


@contextmanager
def progress_line() -> Iterator[Callable[[str, str], None]]:
    """Show the current activity on stderr: a changing line on a terminal, else a line per case."""
    out = common.console(stderr=True)
    if out.is_interactive:
        with status_line(out) as say:
            yield lambda head, text: say(f"{head}: {text}" if text else head)
        return
    shown: set[str] = set()

    def line(head: str, text: str) -> None:
        if head not in shown:
            shown.add(head)
            common.note(head)

    yield line


@contextmanager
def status_line(out: "Console") -> Iterator[Callable[[str], None]]:
    """Show a changing line on a terminal."""
    from rich.text import Text

    letters = out.encoding.startswith("utf")
    with out.status("starting", spinner="dots" if letters else "line") as status:
        yield lambda text: status.update(Text(one_line(text)))


@contextmanager
def training_progress(
    *, line_seconds: float = LINE_SECONDS
) -> Iterator[Callable[["Trained"], None]]:
    """Show a training's progress and the time left on stderr.

    Args:
        line_seconds: Time between lines where stderr is not a terminal; the last update always
            prints.

    Yields:
        Function to call after every update.
    """
    out = common.console(stderr=True)
    if out.is_interactive:
        with status_line(out) as say:
            yield lambda progress: say(training_line(progress))
        return
    shown = float("-inf")

    def line(progress: "Trained") -> None:
        nonlocal shown
        if time.monotonic() - shown >= line_seconds or progress.step == progress.steps:
            shown = time.monotonic()
            print(training_line(progress), file=sys.stderr, flush=True)

    yield line


def training_line(progress: "Trained") -> str:
    """Format a line about a training: updates, time, losses, health of a fake score."""
    numbers = ", ".join(
        f"{name} {value:.4g}"
        for name, value in progress.numbers.items()
        if name.split()[-1] in _SHOWN
    )
    return (
        f"update {progress.step} of {progress.steps}, {progress.seconds:.2f} s, "
        f"{duration(progress.left)} left; {numbers}"
    )
