"""Writes output files, which appear only when complete; reports errors in one line."""

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
"""Suffix of a file that is being written; its name is ``NAME.<8 hexadecimal digits>.part``."""
LEFT_SECONDS = 24 * 3600
"""Age above which a ``.part`` file is assumed to be abandoned rather than in use."""

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
    """Check, before any work is done, that a file could be written; leaves nothing behind.

    Missing folders are created by `PartFile`; here the nearest existing one must accept a small
    file.

    Args:
        path: The file to write; an existing one will be replaced, through a symbolic link if it
            is one.
        suffixes: Accepted suffixes, for example ``(".mp4", ".npy")``.
        inputs: Files that are read; None for those not given.

    Returns:
        The path.

    Raises:
        UserError: Unknown suffix, the path is a folder, a device, a FIFO, a socket or one of the
            inputs, its folder is a file or not writable, or its disk is full.
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
    """Say in one line why a file could not be written, and what to do."""
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
    """List the ``.part`` files of an output, a day old or more, that killed runs left behind.

    Nothing deletes them: a partial video can be played.
    """
    target = _behind(path)
    stem = re.escape(_stem(target))
    name = re.compile(rf"{stem}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}{re.escape(PART)}")
    found = []
    with suppress(OSError):  # no such folder, or unreadable: nothing is known to be left
        for entry in os.scandir(target.parent):
            if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # it was renamed meanwhile
                    if time.time() - entry.stat().st_mtime > LEFT_SECONDS:
                        found.append(Path(entry.path))
    return sorted(found)


def part_pattern(path: Path) -> Path:
    """Return a glob for an output's ``.part`` files, whose random part is unknown."""
    target = _behind(path)
    return target.with_name(f"{_stem(target)}.*{PART}")


def write_text(path: Path | str, text: str) -> None:
    """Write a text as UTF-8, completely or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    with new_file(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))


@contextmanager
def new_file(path: Path | str) -> Iterator[BinaryIO]:
    """Write a file that appears, complete, when the block ends, and not after an exception.

    Args:
        path: The file; an existing one is replaced.

    Yields:
        The stream to write to.

    Raises:
        UserError: The file cannot be created or written. Other exceptions pass through.
    """
    file = PartFile(path)
    try:
        with file.open() as stream:
            yield stream
        file.commit()
    except BaseException as error:  # including Ctrl-C
        file.discard()
        if isinstance(error, OSError):
            raise output_error(file.path, error) from None
        raise


def write_json(path: Path | str, value: object, *, indent: int | None = 1) -> None:
    """Write a report or trace as JSON that every reader accepts, whatever names it holds.

    Args:
        path: The file, as in `new_file`.
        value: Plain values; no number is NaN or infinite.
        indent: Blanks per level; None for a single line.

    Raises:
        UserError: The file cannot be created or written.
    """
    with new_file(path) as stream:
        stream.write(json_bytes(value, indent=indent))


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    r"""Encode plain values as JSON in UTF-8, with a final line end.

    A file name in another encoding reaches Python as lone surrogates, which neither UTF-8 nor JSON
    allows; its bytes are shown as ``\xe9``, as by Python's ``backslashreplace``.
    """
    text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    return _SURROGATE.sub(_backslash, text).encode() + b"\n"


def _backslash(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\\\u{code:04x}"


class PartFile:
    """An output that is written under a temporary name and renamed when it is complete.

    Any number of processes may write the same output: each has its own file, and the last one
    completed wins. If the output is a symbolic link, its target is replaced (or created), and the
    link remains.

    Attributes:
        path: The final name, as given.
        part: The file itself until then, ``NAME.<random>.part`` in the target's folder.
    """

    def __init__(self, path: Path | str) -> None:
        """Create the folder, if missing, and an empty ``.part`` file.

        Raises:
            UserError: The folder or the file cannot be created, or the path exists and is not a
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
        """Return the stream to write to; call it once, and close it before `commit`."""
        return os.fdopen(self._descriptor, "wb", closefd=False)

    def fileno(self) -> int:
        """Return the descriptor, open until `commit` or `discard`, for writers that keep it."""
        return self._descriptor

    def commit(self) -> None:
        """Rename the file to its final name, atomically replacing an existing one.

        Raises:
            UserError: The target can no longer be replaced; the complete file is kept under its
                present name, which the message gives.
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
        """Remove the ``.part`` file and the folders that were created for it.

        After `commit` it does nothing, and what that kept remains.
        """
        self._close()
        if not self._kept:
            with suppress(OSError):
                self.part.unlink()
        self._remove_folders()

    def _new(self) -> tuple[Path, int]:
        """Create a new file, and return it with its descriptor."""
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
            with suppress(OSError):  # not empty: in use by someone else
                folder.rmdir()


def _behind(path: Path | str) -> Path:
    """Resolve an output to the file that is written: itself, or a symbolic link's target."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _same(target: Path, source: Path | str) -> bool:
    """Return whether an existing output is an input."""
    try:
        return target.samefile(source)
    except OSError:  # the input's reader reports what is wrong with it
        return False


def _stem(target: Path) -> str:
    """Return the start of the ``.part`` files' names: the target's, cut to the folder's limit."""
    try:
        longest = os.pathconf(target.parent, "PC_NAME_MAX")
    except OSError:  # the folder does not exist yet
        longest = 255
    room = longest - len(f".{PART}") - 2 * _RANDOM_BYTES
    stem = target.name
    while len(os.fsencode(stem)) > room:  # by characters: half of one may not be valid
        stem = stem[:-1]
    return stem


def _regular(path: Path, target: Path) -> int | None:
    """Return the mode of the regular file at a path; None if nothing is there.

    Raises:
        UserError: Something other than a regular file is there.
        OSError: It cannot be examined.
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
