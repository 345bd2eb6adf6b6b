"""Files that go out: one-line errors, and outputs that appear only when complete."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

PROBE_BYTES = 65536
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_output(
    path: Path | str, suffixes: Collection[str], *, inputs: Iterable[Path | str | None] = ()
) -> Path:
    """Check, before any work is done, that a file could be written there. Leaves nothing behind.

    Folders that do not exist yet are made by `PartFile`; here the nearest one that exists must
    take a small file.

    Args:
        path: The file to be written; one that exists will be replaced.
        suffixes: The endings that are understood, for example ``(".mp4", ".npy")``.
        inputs: Files that are read; None stands for one that is not given.

    Returns:
        The path.

    Raises:
        UserError: Unknown ending, the path is a folder or one of the inputs, its folder is a file,
            is not writable, or its disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise UserError(f"{path}: unknown ending '{path.suffix}'; use {known}")
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the output a file name")
        for source in (Path(given) for given in inputs if given is not None):
            if path.exists() and source.exists() and path.samefile(source):
                raise UserError(f"{path}: is the input {source}; give the output another name")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(bytes(PROBE_BYTES))
            os.fsync(probe.fileno())
    except OSError as error:
        raise output_error(path, error) from None
    return path


def output_error(path: Path, error: OSError) -> UserError:
    """Say in one line what kept a file from being written, and what to do."""
    folder = path.absolute().parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space or use another folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{path}: {folder} is not a folder; use another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: {folder} is not writable; use another output folder")
    return UserError(f"{path}: cannot be written ({error.strerror}); use another output file")


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears, complete, at the end of the block, and not on any exception.

    Args:
        path: The file; one of that name is replaced.

    Yields:
        The stream to write to.

    Raises:
        UserError: The file cannot be made or written. Other exceptions pass through.
    """
    file = PartFile(path)
    try:
        with file.part.open("wb") as stream:
            yield stream
        file.commit()
    except BaseException as error:  # Ctrl-C as well
        file.discard()
        if isinstance(error, OSError):
            raise output_error(path, error) from None
        raise


def write_json(path: Path, value: object, *, indent: int | None = None) -> None:
    """Write a report or a trace that every reader of JSON takes, whatever the names in it are.

    Args:
        path: The file, as in `new_file`.
        value: Plain values; no number is NaN or infinite.
        indent: Blanks per level; None: all in one line.

    Raises:
        UserError: The file cannot be made or written.
    """
    with new_file(path) as stream:
        stream.write(json_bytes(value, indent=indent))


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    r"""Encode plain values as JSON in UTF-8, with the end of a line.

    A file name in another encoding reaches Python as lone surrogates, which neither UTF-8 nor JSON
    has; its bytes are shown as ``\xe9``, as by Python's ``backslashreplace``.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return _SURROGATE.sub(_backslash, text).encode() + b"\n"


def _backslash(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}"


class PartFile:
    """An output that is written beside its final name and renamed when it is complete.

    Attributes:
        path: The final name.
        part: ``<name>.part`` in the same folder, to be written by the caller.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder, where it is missing, and an empty ``.part`` file.

        Raises:
            UserError: The folder or the file cannot be made.
        """
        self.path = path
        self.part = path.with_name(path.name + ".part")
        missing = [parent for parent in path.absolute().parents if not parent.exists()]
        self._made: list[Path] = []
        try:
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                self._made.insert(0, folder)
            self.part.write_bytes(b"")
        except OSError as error:
            self.discard()
            raise output_error(path, error) from None

    def commit(self) -> None:
        """Give the file its final name; a file of that name is replaced in one step."""
        os.replace(self.part, self.path)

    def discard(self) -> None:
        """Remove the ``.part`` file and the folders that were made for it."""
        with suppress(OSError):
            self.part.unlink()
        for folder in self._made:
            with suppress(OSError):  # not empty: someone else uses it by now
                folder.rmdir()
