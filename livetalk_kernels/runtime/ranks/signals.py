"""Hear signals at once, also while the main thread is blocked in C++; end at once."""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from ...lines import one_line

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a process to end: Ctrl-C, ``kill``, a terminal or connection that is gone."""
ECHO = 0.1
"""Seconds; nobody presses Ctrl-C twice in so short a time."""


Before = Mapping[signal.Signals, Any]
"""What a process did at signals; see `catch`."""


def catch(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
    numbers: Collection[signal.Signals] = ENDING,
    *,
    also_ignored: Collection[signal.Signals] = (),
) -> Before:
    """Handle signals that ask this process to end. To be called in the main thread.

    Args:
        handler: As for `signal.signal`.
        numbers: The signals. One that is ignored (``nohup``, a job in the background) stays so.
        also_ignored: Those of them that are handled nevertheless.

    Returns:
        What was done before, for `give_back`.
    """
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if number in also_ignored or signal.getsignal(number) is not signal.SIG_IGN
    }


def give_back(handlers: Before) -> None:
    """Do again what was done at signals before `catch`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP too, so that they lose no more than SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = catch(signal.default_int_handler, (signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        give_back(before)


class Echo:
    """Tells whether a signal is the one before once more.

    A terminal sends Ctrl-C to all of its processes, and some wrappers of commands forward it: one
    press of the keys may arrive twice.
    """

    def __init__(self) -> None:
        """No signal has come."""
        self._last = float("-inf")

    def __call__(self) -> bool:
        """A signal has come; whether it is an echo."""
        before, self._last = self._last, time.monotonic()
        return self._last - before < ECHO


class SignalThread:
    """Calls a function in a thread of its own at each of `ENDING` that Python handles.

    Python runs its handlers only when the main thread is back from C++, which may be never: a rank
    may wait for another one that is lost. The interpreter does write the signal's number into a
    socket at once, however (`signal.set_wakeup_fd`), and this thread reads it. Nested ones all
    hear it, the inner one first. To be entered in the main thread.
    """

    def __init__(self, heard: Callable[[], None]) -> None:
        """``heard`` is called in the thread, once for each signal that is no echo."""
        self._heard = heard
        self._before = -1

    def __enter__(self) -> Self:
        """Listen."""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no longer; whoever listened before does again."""
        signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        self._writer.close()  # the thread reads the end
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        echo = Echo()
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in ENDING and not echo():
                    self._heard()
                if self._before >= 0:
                    with suppress(OSError):  # full: it has heard enough
                        os.write(self._before, bytes([number]))


def say(line: str) -> None:
    """Print a line on stderr, though the main thread may be blocked with its lock.

    On a terminal a progress bar may be there: a new line is begun and the cursor is shown again.
    """
    start = "\x1b[?25h\n" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{start}{one_line(line)}\n".encode(errors="backslashreplace"))


def leave_quickly(code: int) -> None:
    """From the end of the program on, end the process at once, without taking libraries down.

    That takes torch seconds on a busy machine, and for ever if a group waits for lost ranks.

    Args:
        code: Exit code, the same that the program is about to end with.
    """
    atexit.register(end_now, code)


def end_now(code: int) -> None:
    """End the process at once with an exit code; what was printed is not lost."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
