"""Ctrl-C that stops a run cleanly: at once, after a write, or when the run looks for it."""

import os
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from livetalk_kernels.runtime.signals import Before, SignalThread, catch, give_back, say

from . import common


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into KeyboardInterrupt, but never in held code.

    The second one ends the process at once, with exit code 130, wherever it is. A signal that was
    ignored before (``nohup``, a job in the background) stays ignored.

    Attributes:
        left: Told at the second signal: which file is left, in which state.
    """

    def __init__(self, *, stopping: Callable[[], None] | None = None) -> None:
        """Nothing is caught until the object is entered, in the main thread.

        Args:
            stopping: Called in the main thread at the first signal, `Watchdog.stopping`.
        """
        self.left = ""
        self._stopping = stopping
        self._held = self._waiting = self._raised = False
        self._heard = 0
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
        """Give the signals back."""
        give_back(self._before)
        self._thread.__exit__(kind, error, trace)

    def hold(self) -> None:
        """From here on a signal waits."""
        self._held = True

    def release(self) -> None:
        """No longer wait; raise KeyboardInterrupt if a signal came meanwhile."""
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

    def _count(self) -> None:
        """In a thread of its own, also while the main thread is blocked in C++."""
        self._heard += 1
        if self._heard > 1:
            say(f"killed{self.left and '; '}{self.left}")
            os._exit(common.INTERRUPTED)


class Wish:
    """Hears the first SIGINT, SIGTERM or SIGHUP as a wish to stop, which the run looks for.

    The second one ends the process at once, with exit code 130, wherever it is. Inside a
    `Watchdog` its ``patience`` says how long the run may take.
    """

    def __init__(self, stopping: str, left: str) -> None:
        """Nothing is caught until the object is entered, in the main thread.

        Args:
            stopping: Told at the first signal.
            left: Told at the second: what is left, in which state.
        """
        self._stopping, self._left = stopping, left
        self._asked, self._heard = False, 0
        self._before: Before = {}

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return self._asked

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
        """Give the signals back."""
        give_back(self._before)
        self._thread.__exit__(kind, error, trace)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _count(self) -> None:
        """In a thread of its own, also while the main thread is blocked in C++."""
        self._heard += 1
        say(f"killed; {self._left}" if self._heard > 1 else self._stopping)
        if self._heard > 1:
            os._exit(common.INTERRUPTED)
