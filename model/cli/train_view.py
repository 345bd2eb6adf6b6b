"""What is seen and heard while ``livetalk train`` runs."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from . import common
from .progress import LINE_SECONDS, progress_line

if TYPE_CHECKING:
    from ..train.loop import Progress


@contextmanager
def until_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Let the first signal end the run after the update, with a checkpoint; the second at once."""
    from livetalk_kernels.runtime.signals import catch, give_back

    heard = False

    def caught(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            signal.default_int_handler(number, frame)
        heard = True
        common.note("stopping after this update")

    before = catch(caught)
    try:
        yield lambda: heard
    finally:
        give_back(before)


@contextmanager
def told() -> Iterator[Callable[["Progress"], None]]:
    """Show how far the run is: on a terminal all the time, else now and then."""
    shown = float("-inf")
    with progress_line() as line:

        def tell(progress: "Progress") -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown < (0 if common.console(stderr=True).is_interactive else LINE_SECONDS):
                return
            shown = now
            losses = [f"{k} {v:.4g}" for k, v in progress.numbers.items() if k.endswith("loss")]
            line(
                f"update {progress.step} of {progress.steps}, {', '.join(losses)}, "
                f"{_time(progress.left)} left",
                "",
            )

        yield tell


def _time(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
