"""Ctrl-C that stops a run cleanly: at once while computing, after the write while writing."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, but never in the middle of `held` code."""

    def __init__(self) -> None:
        """Nothing is caught until the object is entered."""
        self._holding = self._waiting = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        """Catch the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
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
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    @contextmanager
    def held(self) -> Iterator[None]:
        """Finish what runs inside; a signal that comes meanwhile is raised afterwards."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._waiting = True
        else:
            raise KeyboardInterrupt
