"""Files that go out: one-line errors, and outputs that appear only when complete."""

import errno
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

PROBE_BYTES = 65536
PART = ".part"
"""Ending of a file that is being written; its name is ``NAME.<8 hexadecimal digits>.part``."""
LEFT_SECONDS = 24 * 3600
"""Age at which a ``.part`` file is no longer taken for that of a run under way."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_RANDOM_BYTES = 4
_TRIES = 100
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
)


def check_output(
    path: Path | str, suffixes: Collection[str], *, inputs: Iterable[Path | str | None] = ()
) -> Path:
    """Check, before any work is done, that a file could be written there. Leaves nothing behind.

    Folders that do not exist yet are made by `PartFile`; here the nearest one that exists must
    take a small file.

    Args:
        path: The file to be written; one that exists will be replaced, and of a symbolic link
            what stands behind it.
        suffixes: The endings that are understood, for example ``(".mp4", ".npy")``.
        inputs: Files that are read; None stands for one that is not given.

    Returns:
        The path.

    Raises:
        UserError: Unknown ending, the path is a folder, a device, a FIFO, a socket or one of the
            inputs, its folder is a file, is not writable, or its disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        known = " or ".join(suffixes)
        raise UserError(f"{path}: unknown ending '{path.suffix}'; use {known}")
    try:
        target = _behind(path)
        there = _regular(path, target) is not None
        for source in inputs if there else ():
            if source is not None and _same(target, source):
                raise UserError(f"{path}: is the input {source}; give the output another name")
        folder = next(parent for parent in target.absolute().parents if parent.exists())
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
    if error.errno == errno.EFBIG:
        return UserError(f"{path}: a limit on the size of files is reached; raise 'ulimit -f'")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"{path}: {folder} is not a folder; use another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: {folder} is not writable; use another output folder")
    return UserError(f"{path}: cannot be written ({error.strerror}); use another output file")


def old_parts(path: Path) -> list[Path]:
    """What runs that were killed have left of an output: its ``.part`` files of a day and more.

    Nobody deletes them: a video among them can be played.
    """
    target = _behind(path)
    stem = re.escape(_stem(target))
    name = re.compile(rf"{stem}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}{re.escape(PART)}")
    found = []
    with suppress(OSError):  # no such folder yet, or not to be read: nothing is known to be left
        for entry in os.scandir(target.parent):
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # it has just got its name
                    if time.time() - entry.stat().st_mtime > LEFT_SECONDS:
                        found.append(Path(entry.path))
    return sorted(found)


def part_pattern(path: Path) -> Path:
    """The names of an output's ``.part`` files, for who does not know the random part of one."""
    target = _behind(path)
    return target.with_name(f"{_stem(target)}.*{PART}")


def write_text(path: Path | str, text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    with new_file(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))


@contextmanager
def new_file(path: Path | str) -> Iterator[BinaryIO]:
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
        with file.open() as stream:
            yield stream
        file.commit()
    except BaseException as error:  # Ctrl-C as well
        file.discard()
        if isinstance(error, OSError):
            raise output_error(file.path, error) from None
        raise


def write_json(path: Path | str, value: object, *, indent: int | None = 1) -> None:
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

    Any number of processes may write the same output: each has a file of its own, and the one that
    is complete last stays. Where the output is a symbolic link, what stands behind it is replaced
    (or made, if there is nothing yet), and the link stays.

    Attributes:
        path: The final name, as it was given.
        part: The file itself until then, ``NAME.<random>.part`` in the folder of what is replaced.
    """

    def __init__(self, path: Path | str) -> None:
        """Make the folder, where it is missing, and an empty ``.part`` file.

        Raises:
            UserError: The folder or the file cannot be made, or something is there that is not a
                regular file.
        """
        self.path = path = Path(path)
        self._made: list[Path] = []
        self._descriptor = -1
        self._kept = False
        try:
            self._target = _behind(path)
            self._replaced = _regular(path, self._target)
            missing = [p for p in self._target.absolute().parents if not p.exists()]
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                self._made.insert(0, folder)
            self.part, self._descriptor = self._new()
        except OSError as error:
            self._remove_folders()
            raise output_error(path, error) from None

    def open(self) -> BinaryIO:
        """The stream to write to; to be closed before `commit`, and to be asked for once."""
        return os.fdopen(self._descriptor, "wb", closefd=False)

    def fileno(self) -> int:
        """The descriptor, open until `commit` or `discard`, for a stream that does not close it."""
        return self._descriptor

    def commit(self) -> None:
        """Give the file its final name; a file of that name is replaced in one step.

        Raises:
            UserError: What is there by now cannot be replaced: then the complete file is kept
                under its present name, which the message tells.
            OSError: The disk is full.
        """
        try:
            os.fsync(self._descriptor)
            if self._replaced is not None:
                with suppress(OSError):  # a file system without permissions
                    os.fchmod(self._descriptor, self._replaced & 0o777)
        finally:
            self._close()
        try:
            _regular(self.path, self._target)
            os.replace(self.part, self._target)
        except (OSError, UserError) as error:
            why = output_error(self.path, error) if isinstance(error, OSError) else error
            if not self.part.exists():  # the folder itself is gone
                raise why from None
            self._kept = True
            raise UserError(f"{why}; the complete file is left in {self.part}") from None

    def discard(self) -> None:
        """Remove the ``.part`` file and the folders that were made for it.

        After `commit` it does nothing, and what that has kept stays.
        """
        self._close()
        if not self._kept:
            with suppress(OSError):
                self.part.unlink()
        self._remove_folders()

    def _new(self) -> tuple[Path, int]:
        """A file that was not there, and its descriptor."""
        mode = 0o666 if self._replaced is None else self._replaced & 0o666 | 0o600
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(_TRIES):
            name = f"{_stem(self._target)}.{secrets.token_hex(_RANDOM_BYTES)}{PART}"
            part = self._target.with_name(name)
            with suppress(FileExistsError):
                return part, os.open(part, flags, mode)
        raise OSError(errno.EBUSY, "no free name for its .part file")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _remove_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # not empty: someone else uses it by now
                folder.rmdir()


def _behind(path: Path | str) -> Path:
    """What is written for an output: itself, or what a symbolic link points to."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _same(target: Path, source: Path | str) -> bool:
    """Whether an output that exists is an input."""
    try:
        return target.samefile(source)
    except OSError:  # who reads the input tells what is wrong with it
        return False


def _stem(target: Path) -> str:
    """Start of the ``.part`` files' names: the target's name, cut to what the folder takes."""
    try:
        longest = os.pathconf(target.parent, "PC_NAME_MAX")
    except OSError:  # the folder is still to be made
        longest = 255
    room = longest - len(f".{PART}") - 2 * _RANDOM_BYTES
    stem = target.name
    while len(os.fsencode(stem)) > room:  # by characters: half a one may not be a name
        stem = stem[:-1]
    return stem


def _regular(path: Path, target: Path) -> int | None:
    """The mode of the regular file that is there; None where there is nothing.

    Raises:
        UserError: Something else is there.
        OSError: It cannot be seen.
    """
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return mode
    kind = next((name for test, name in _KINDS if test(mode)), "special file")
    if kind == "folder":
        raise UserError(f"{path}: is a folder; give the output a file name")
    raise UserError(f"{path}: is a {kind} and no file; use another output file")
