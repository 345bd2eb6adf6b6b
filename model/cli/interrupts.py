"""Ctrl-C that stops a run cleanly: at once, after a write, or when the run looks for it."""

import os
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from livetalk_kernels.runtime.signals import Before, SignalThread, catch, give_back, say

from . import common


class _Signals:
    """Catches SIGINT, SIGTERM and SIGHUP in the main thread while the object is entered.

    The second one ends the process at once, with exit code 130, wherever it is. A signal that was
    ignored before (``nohup``, a job in the background) stays ignored.

    Attributes:
        left: Told at the second signal: which file is left, in which state.
    """

    def __init__(self, left: str = "", *, told: str = "") -> None:
        """Nothing is caught until the object is entered; ``told`` is said at the first signal."""
        self.left, self._told = left, told
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

    def _caught(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, at any signal."""
        raise NotImplementedError

    def _count(self) -> None:
        """In a thread of its own, also while the main thread is blocked in C++."""
        self._heard += 1
        if self._heard > 1:
            say(f"killed{self.left and '; '}{self.left}")
            os._exit(common.INTERRUPTED)
        if self._told:
            say(self._told)


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


class Wish(_Signals):
    """Hears the first signal as a wish to stop, which the run looks for.

    Inside a `Watchdog` its ``patience`` says how long the run may take.
    """

    def __init__(self, stopping: str, left: str) -> None:
        """See the base class.

        Args:
            stopping: Told at the first signal.
            left: Told at the second: what is left, in which state.
        """
        super().__init__(left, told=stopping)
        self._asked = False

    def __call__(self) -> bool:
        """Whether the run is to stop."""
        return self._asked

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
