"""Standard output and error that survive being closed, full, unread or of a limited encoding."""

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self, TextIO

_PLAIN = "livetalk.plain"
_LETTERS = {"µ": "u", "–": "-"}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Substitute a letter if there is one, so that tables keep their width."""
    if isinstance(error, UnicodeEncodeError):
        letter = error.object[error.start]
        if letter in _LETTERS:
            return _LETTERS[letter], error.start + 1
    return codecs.backslashreplace_errors(error)


codecs.register_error(_PLAIN, _plain)


class ReaderGoneError(Exception):
    """The reader of our output is gone; not an `OSError`, which libraries would handle."""


class Output(io.TextIOBase):
    """A stream that drops what it cannot write, and remembers why.

    The command continues: its files will be complete, and its exit code counts. Only when the
    reader of a pipe is gone, as with ``| head``, continuing is useless.

    Attributes:
        failure: Why output was lost; None if none was.
    """

    def __init__(self, stream: TextIO | None, *, needs_reader: bool = False) -> None:
        """Write to ``stream``; None is one that was closed before the program began.

        Args:
            stream: Python's own stream.
            needs_reader: Raise `ReaderGoneError` once the reader of a pipe is gone.
        """
        self._stream, self._needs_reader = stream, needs_reader
        self.failure: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
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
        """Write what is buffered."""
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.failure = error
        if self._stream is not None:
            # Python would fail again when it flushes its buffers at exit.
            with suppress(OSError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
        if self._needs_reader and isinstance(error, BrokenPipeError):
            raise ReaderGoneError from None

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"


class Streams:
    """Replaces ``sys.stdout`` and ``sys.stderr`` by `Output` for the duration of a block.

    Attributes:
        out: Standard output.
    """

    def __enter__(self) -> Self:
        """Replace both; keep descriptors 0 to 2 away from files opened later."""
        self._before = sys.stdout, sys.stderr
        self.out = Output(sys.stdout, needs_reader=True)
        sys.stdout, sys.stderr = self.out, Output(sys.stderr)
        # Otherwise a video might get descriptor 2, and libraries would print into it.
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
        """Restore Python's own streams."""
        sys.stderr.flush()
        sys.stdout, sys.stderr = self._before

    def exit_code(self, code: int) -> int:
        """Report lost output; return the exit code, which is then 1 instead of 0."""
        with suppress(ReaderGoneError):
            self.out.flush()
        if self.out.failure is None:
            return code
        if not isinstance(self.out.failure, BrokenPipeError):
            reason = self.out.failure.strerror
            print(
                f"error: cannot write to standard output ({reason}); redirect it elsewhere",
                file=sys.stderr,
            )
        return code or 1
