"""Stop a run cleanly on Ctrl-C: at once, after a write, or when the run polls for it."""

import os
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from livetalk_kernels.runtime.ranks.signals import Before, SignalThread, catch, give_back, say

from . import common


def left_behind(part: Path) -> str:
    """Describe what a killed process leaves of a video, given the file's name or a pattern."""
    playable = ".mp4" in part.suffixes
    return f"{part} is playable" if playable else f"{part} is incomplete"


class _Signals:
    """Catches SIGINT, SIGTERM and SIGHUP in the main thread while the object is entered.

    A second one ends the process immediately, with exit code 130. A signal that was ignored before
    (``nohup``, a background job) stays ignored.

    Attributes:
        left: Printed at the second signal: which file is left, in which state.
    """

    def __init__(self, left: str = "", *, notice: str = "") -> None:
        """Catch nothing until entered; ``notice`` is printed at the first signal."""
        self.left, self._notice = left, notice
        self._count_seen = 0
        self._before: Before = {}

    def __enter__(self) -> Self:
        """Catch the signals."""
        self._thread = SignalThread(self._count).__enter__()
        self._before = catch(self._caught)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the previous handlers."""
        give_back(self._before)
        self._thread.__exit__(kind, error, trace)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        raise NotImplementedError

    def _count(self) -> None:
        """Count a signal, in a separate thread, even while the main thread is blocked in C++."""
        self._count_seen += 1
        if self._count_seen > 1:
            say(f"killed{self.left and '; '}{self.left}")
            os._exit(common.INTERRUPTED)
        if self._notice:
            say(self._notice)


class Interrupts(_Signals):
    """Turns the first signal into KeyboardInterrupt, but never in held code."""

    def __init__(self, *, stopping: Callable[[], None] | None = None) -> None:
        """See the base class.

        Args:
            stopping: Called in the main thread at the first signal, `Watchdog.stopping`.
        """
        super().__init__()
        self._stopping = stopping
        self._held = self._waiting = self._raised = False

    def hold(self) -> None:
        """Postpone signals from here on."""
        self._held = True

    def release(self) -> None:
        """Stop postponing; raise KeyboardInterrupt if a signal came meanwhile."""
        self._held = False
        if self._waiting and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._stopping is not None and not (self._waiting or self._raised):
            self._stopping()
        if self._held:
            self._waiting = True
        elif not self._raised:
            self._raised = True
            raise KeyboardInterrupt


class Wish(_Signals):
    """Turns the first signal into a request to stop, which the run polls for.

    Inside a `Watchdog` its ``patience`` says how long the run may take.
    """

    def __init__(self, stopping: str, left: str) -> None:
        """See the base class.

        Args:
            stopping: Printed at the first signal.
            left: Printed at the second: what is left, in which state.
        """
        super().__init__(left, notice=stopping)
        self._asked = False

    def __call__(self) -> bool:
        """Return whether the run should stop."""
        return self._asked

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
