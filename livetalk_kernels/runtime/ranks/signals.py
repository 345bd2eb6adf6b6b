"""Handles signals at once, even while the main thread is blocked in C++; ends processes at once."""

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
"""Signals that ask a process to end: Ctrl-C, ``kill``, a closed terminal or connection."""
ECHO = 0.1
"""Seconds; nobody presses Ctrl-C twice in so short a time."""


Before = Mapping[signal.Signals, Any]
"""Previous signal handlers; see `catch`."""


def catch(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
    numbers: Collection[signal.Signals] = ENDING,
    *,
    also_ignored: Collection[signal.Signals] = (),
) -> Before:
    """Handle signals that ask this process to end; call it in the main thread.

    Args:
        handler: As for `signal.signal`.
        numbers: The signals. Ignored ones (``nohup``, a background job) stay ignored.
        also_ignored: Signals to handle even if ignored.

    Returns:
        The previous handlers, for `give_back`.
    """
    return {
        number: signal.signal(number, handler)
        for number in numbers
        if number in also_ignored or signal.getsignal(number) is not signal.SIG_IGN
    }


def give_back(handlers: Before) -> None:
    """Restore the handlers from before `catch`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP too, so that they lose no more than SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = catch(signal.default_int_handler, (signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        give_back(before)


class Echo:
    """Detects a signal that merely repeats the one before.

    A terminal sends Ctrl-C to all of its processes, and some command wrappers forward it: one key
    press may arrive twice.
    """

    def __init__(self) -> None:
        """Start with no signal received."""
        self._last = float("-inf")

    def __call__(self) -> bool:
        """Register a signal; return whether it is an echo."""
        before, self._last = self._last, time.monotonic()
        return self._last - before < ECHO


class SignalThread:
    """Calls a function in its own thread for each of `ENDING` that Python handles.

    Python runs handlers only when the main thread returns from C++, which may be never: a rank may
    be waiting for a lost one. But the interpreter immediately writes the signal's number to a
    socket (`signal.set_wakeup_fd`), which this thread reads. Nested instances all receive it, the
    innermost first. Enter it in the main thread.
    """

    def __init__(self, received: Callable[[], None]) -> None:
        """Call ``received`` in the thread, once for each signal that is not an echo."""
        self._received = received
        self._before = -1

    def __enter__(self) -> Self:
        """Start listening."""
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
        """Stop listening, and restore the previous listener."""
        signal.set_wakeup_fd(self._before, warn_on_full_buffer=False)
        self._writer.close()  # the thread reads end of file
        self._thread.join()
        self._reader.close()

    def _listen(self) -> None:
        echo = Echo()
        while numbers := self._reader.recv(64):
            for number in numbers:
                if number in ENDING and not echo():
                    self._received()
                if self._before >= 0:
                    with suppress(OSError):  # full: enough notifications are pending
                        os.write(self._before, bytes([number]))


def say(line: str) -> None:
    """Print a line on stderr, even if the main thread is blocked while holding its lock.

    A terminal may show a progress bar: start a new line and show the cursor again.
    """
    start = "\x1b[?25h\n" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{start}{one_line(line)}\n".encode(errors="backslashreplace"))


def leave_quickly(code: int) -> None:
    """Arrange for the program's end to end the process at once, without unloading libraries.

    Unloading takes torch seconds on a busy machine, and forever if a group waits for lost ranks.

    Args:
        code: Exit code, the same that the program is about to end with.
    """
    atexit.register(end_now, code)


def end_now(code: int) -> None:
    """End the process at once with an exit code; printed output is flushed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
