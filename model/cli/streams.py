"""Standard output and error, whatever they are: closed, full, without a reader, of few letters."""

import errno
import io
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO


class ReaderGoneError(Exception):
    """Nobody reads our output any longer; no `OSError`, which libraries would handle."""


class Output(io.TextIOBase):
    """A stream that loses what it cannot write, and remembers why.

    A command goes on: what it makes is complete, and its exit code counts. Only if the reader of a
    pipe is gone, as with ``| head``, there is no use in going on.

    Attributes:
        failure: Why something was lost; None: nothing was.
    """

    def __init__(self, stream: TextIO | None, *, needs_reader: bool = False) -> None:
        """Write to ``stream``; None is a stream that was closed before the program began.

        Args:
            stream: Python's own stream.
            needs_reader: Raise `ReaderGoneError` once the reader of a pipe is gone.
        """
        self._stream, self._needs_reader = stream, needs_reader
        self.failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, or lose, a text."""
        if self._stream is None:
            if text:
                self._lose(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        elif self.failure is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write what is waiting."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.failure = error
        if self._stream is not None:
            # What is waiting in Python's buffers would fail again when it flushes them at exit.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
        if self._needs_reader and isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None

    def fileno(self) -> int:
        """Descriptor of the stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"


class Streams:
    """Puts `Output` in the place of ``sys.stdout`` and ``sys.stderr`` for a while.

    Attributes:
        out: Standard output.
    """

    def __enter__(self) -> Self:
        """Replace both; keep descriptors 0 to 2 from the files that are to be opened."""
        self._before = sys.stdout, sys.stderr
        self.out = Output(sys.stdout, needs_reader=True)
        sys.stdout, sys.stderr = self.out, Output(sys.stderr)
        # Otherwise a video may get number 2, and what a library prints there gets into it.
        while (opened := os.open(os.devnull, os.O_RDONLY)) <= 2:
            os.set_inheritable(opened, True)
        os.close(opened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put Python's own streams back."""
        sys.stderr.flush()
        sys.stdout, sys.stderr = self._before

    def exit_code(self, code: int) -> int:
        """Say what of the output was lost; the exit code, which is 1 then instead of 0."""
        with suppress(ReaderGoneError):
            self.out.flush()
        if self.out.failure is None:
            return code
        if not isinstance(self.out.failure, BrokenPipeError):
            reason = self.out.failure.strerror
            print(
                f"error: standard output cannot be written ({reason}); send it elsewhere",
                file=sys.stderr,
            )
        return code or 1
