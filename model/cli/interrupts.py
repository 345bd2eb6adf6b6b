"""Ctrl-C that stops a run cleanly: at once while computing, after the write while writing."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt, but never in held code.

    Later ones do nothing, so that the clean-up behind the first can end. A signal that was ignored
    before (``nohup``, a job in the background) stays ignored.
    """

    def __init__(self) -> None:
        """Nothing is caught until the object is entered."""
        self._held = self._waiting = self._raised = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Catch the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
        if self._held:
            self._waiting = True
        elif not self._raised:
            self._raised = True
            raise KeyboardInterrupt
