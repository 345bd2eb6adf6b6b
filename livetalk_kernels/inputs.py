"""Reads input files: checks paths, bounds the size of text and JSON, reports errors in one line."""

import dataclasses
import errno
import json
import math
import os
import stat
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from .errors import UserError

TEXT_BYTES = 16 << 20
"""Largest text file in bytes, unless its reader sets another limit."""
REPORT_BYTES = 64 << 20
"""The same for a report with a record per chunk."""
LFS_HEAD = b"version https://git-lfs.github.com/spec/"
_LARGEST = 2**63  # bound on whole numbers in JSON; their readers count in 64 bits
_EXACT = 2**53  # bound up to which every JSON reader represents whole numbers exactly
_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_NO_NUMBER = "no finite number of 64 bits"
_BOM = b"\xef\xbb\xbf"
_SPECIAL = (
    (stat.S_ISFIFO, "is a pipe; write it to a file first"),
    (stat.S_ISSOCK, "is a socket; write its data to a file first"),
    (stat.S_ISCHR, "is a device; write its data to a file first"),
    (stat.S_ISBLK, "is a device; write its data to a file first"),
)
_PROBLEMS = {
    errno.EACCES: "cannot be read; change its permissions or those of its folders",
    errno.EPERM: "cannot be read; change its permissions or those of its folders",
    errno.ENAMETOOLONG: "the name is longer than file systems allow; check the path",
    errno.ELOOP: "is a link that leads back to itself; remove it",
}

T = TypeVar("T")


# Paths ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of looking at a path.

    Attributes:
        kind: ``special`` is a pipe, a device or a socket, ``dangling`` a broken link,
            ``unusable`` what the system refuses to examine.
        bytes: Size of a file; 0 for some system files, although they can be read.
        problem: Why it cannot be read as a file or folder, and what to do; else empty.
    """

    kind: Literal["file", "folder", "missing", "dangling", "special", "unusable"]
    bytes: int = 0
    problem: str = ""


def find(path: Path | str) -> Found:
    """Look at a path, following links, without opening it; never raises."""
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        target = _link_target(path)
        if target is None:
            return Found(kind="missing", problem="does not exist; check the path")
        return Found(
            kind="dangling",
            problem=f"is a link to {target}, which is not there; a download was cut off, or "
            "copied without what its links lead to: download it again, or copy with 'cp -rL'",
        )
    except OSError as error:
        return Found(kind="unusable", problem=_problem(error))
    except ValueError:  # a zero byte, or a character that no name can have
        return Found(kind="unusable", problem="is not a possible file name; check the path")
    if stat.S_ISREG(state.st_mode):
        return Found(kind="file", bytes=state.st_size)
    if stat.S_ISDIR(state.st_mode):
        return Found(kind="folder")
    words = (words for test, words in _SPECIAL if test(state.st_mode))
    return Found(kind="special", problem=next(words, "is not a regular file"))


def is_file(path: Path | str) -> bool:
    """Return whether a path is a regular file; False if that cannot be determined."""
    return find(path).kind == "file"


def is_folder(path: Path | str) -> bool:
    """Return whether a path is a folder; False if that cannot be determined."""
    return find(path).kind == "folder"


def check_folder(path: Path | str, missing: str) -> Path:
    """Check that a path is a folder, and not merely the parent of the one that is meant.

    Args:
        path: The folder.
        missing: What to do if it is missing, for example ``"give the one of wav2vec2"``.

    Returns:
        The path.

    Raises:
        UserError: It is missing or not a folder, cannot be read, or is the root of a download
            cache, whose snapshots are the folders to name.
    """
    path, found = Path(path), find(path)
    if found.kind == "missing":
        raise UserError(f"{path}: no such folder; {missing}")
    if found.kind == "file":
        raise UserError(f"{path}: is a file, not a folder; {missing}")
    if found.problem:
        raise UserError(f"{path}: {found.problem}")
    try:
        names = set(os.listdir(path))
    except OSError as error:
        raise UserError(f"{path}: {_problem(error)}") from None
    if "snapshots" in names and {"blobs", "refs"} & names:
        raise UserError(
            f"{path}: is the root of a download cache; give one of its snapshots: {_snapshot(path)}"
        )
    return path


def _snapshot(cache: Path) -> Path:
    """Return the snapshot of a download cache that branch ``main`` refers to, else the newest."""
    folder = cache / "snapshots"
    try:
        main = (cache / "refs/main").read_text("ascii", "replace")[:80].strip()
    except OSError:
        main = ""
    if main and is_folder(folder / main):
        return folder / main
    try:
        known = [entry for entry in os.scandir(folder) if entry.is_dir()]
        return Path(max(known, key=lambda entry: entry.stat().st_mtime).path)
    except (OSError, ValueError):  # none
        return folder / "HASH"


def check_input(path: Path | str, what: str, *, missing: str = "check the path") -> Path:
    """Check that a file exists, is a regular file, is readable and is not empty.

    Args:
        path: The file.
        what: What the file is to the user, for example ``"audio"``; used in messages.
        missing: What to do if it is missing.

    Returns:
        The path.

    Raises:
        UserError: It is missing, a folder, a pipe, a device, empty, a Git LFS pointer, or not
            readable.
    """
    with open_input(path, what, missing=missing):
        return Path(path)


def open_input(path: Path | str, what: str, *, missing: str = "check the path") -> BinaryIO:
    """Open a file after `check_input`'s checks; never blocks.

    Raises:
        UserError: See `check_input`.
    """
    found = find(path)
    if found.kind == "missing":
        raise UserError(f"{path}: no such {what} file; {missing}")
    if found.kind == "folder":
        raise UserError(f"{path}: is a folder; name the {what} file in it")
    if found.problem:
        raise UserError(f"{path}: {found.problem}")
    try:
        # It may have become a pipe since it was checked: opening one must not wait for its writer.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise UserError(f"{path}: {_problem(error)}") from None
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path}: is not a regular file; write it to a file first")
        head = file.read(len(LFS_HEAD))
        if not head:
            raise UserError(f"{path}: the {what} file is empty; record, export or download it")
        if head == LFS_HEAD:
            raise UserError(
                f"{path}: is a Git LFS pointer, not the {what} file itself; run "
                "'git lfs pull' in its repository"
            )
        file.seek(0)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError):
            raise UserError(f"{path}: {_problem(error)}") from None
        raise
    return file


def _link_target(path: Path | str) -> str | None:
    try:
        return os.readlink(path)
    except (OSError, ValueError):
        return None


def _problem(error: OSError) -> str:
    """Explain a refusal by the system, and what to do."""
    usual = f"cannot be read ({error.strerror}); check the path"
    return _PROBLEMS.get(error.errno or 0, usual)


# Text and JSON ----------------------------------------------------------------------------


def read_bytes(
    path: Path | str, what: str, *, limit: int = TEXT_BYTES, missing: str = "check the path"
) -> bytes:
    """Read a whole file of bounded size.

    Args:
        path: The file.
        what: What the file is to the user, for example ``"tuning"``.
        limit: Most bytes. The file's own size is not consulted: system files report 0.
        missing: What to do if it is missing.

    Raises:
        UserError: See `check_input`; or it is too large.
    """
    with open_input(path, what, missing=missing) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise UserError(f"{path}: {_problem(error)}") from None
    return _bounded(data, str(path), limit)


def read_text(
    source: Path | str | bytes,
    what: str,
    *,
    limit: int = TEXT_BYTES,
    missing: str = "check the path",
) -> str:
    """Read UTF-8 text of bounded size, with or without a byte order mark.

    Args:
        source: A file's path, or the bytes themselves.
        what: What the file is to the user; for bytes, their name in messages.
        limit: Most bytes.
        missing: What to do if there is no file.

    Raises:
        UserError: See `read_bytes`; or it has another encoding, or is not text.
    """
    if isinstance(source, bytes):
        name, data = what, _bounded(source, what, limit)
    else:
        name, data = str(source), read_bytes(source, what, limit=limit, missing=missing)
    other = next((encoding for mark, encoding in _ENCODINGS if data.startswith(mark)), None)
    if other is not None:
        raise UserError(f"{name}: is text in {other}; save it as UTF-8")
    data = data.removeprefix(_BOM)
    place = data.find(b"\0")
    if place >= 0:
        raise UserError(f"{name}: is not UTF-8 text (byte {place} is zero); check the file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}: is not UTF-8 text (line {line}, byte {error.start}); save it as UTF-8"
        ) from None


def read_json(
    source: Path | str | bytes,
    what: str,
    *,
    cure: str,
    limit: int = TEXT_BYTES,
    missing: str = "check the path",
) -> dict[str, Any]:
    """Read the object in a JSON text: unique names, finite numbers, bounded size and depth.

    Args:
        source: A file's path, or the bytes themselves.
        what: What the file is to the user; for bytes, their name in messages.
        cure: What to do if the file is not such JSON, for example ``"profile again"``.
        limit: Most bytes.
        missing: What to do if there is no file.

    Raises:
        UserError: See `read_text`; or it breaks these rules, or is not an object.
    """
    text = read_text(source, what, limit=limit, missing=missing)
    name = what if isinstance(source, bytes) else source
    try:
        value = _parse(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise UserError(f"{name}: is not valid JSON ({error.msg}: {place}); {cure}") from None
    except RecursionError:
        raise UserError(f"{name}: is not usable JSON (nested too deeply); {cure}") from None
    except ValueError as error:
        raise UserError(f"{name}: is not usable JSON ({error}); {cure}") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: holds {_kind(value)}, not a JSON object; {cure}")
    return value


def _bounded(data: bytes, name: str, limit: int) -> bytes:
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise UserError(f"{name}: is larger than {size}, the most that is read here; check it")
    return data


def _parse(text: str) -> object:
    """Parse JSON strictly.

    Raises:
        ValueError: A name occurs twice, or a number is not finite or exceeds 64 bits.
        RecursionError: It is nested too deeply.
    """
    wrong: list[str] = []  # the offending number, until its place is known

    def whole(digits: str) -> int | float:
        if len(digits) > len(str(_LARGEST)) + 1 or not -_LARGEST <= int(digits) < _LARGEST:
            wrong.append(digits)
            return math.nan
        return int(digits)

    def fraction(digits: str) -> float:
        number = float(digits)
        if math.isfinite(number):
            return number
        wrong.append(digits)
        return math.nan

    def constant(word: str) -> float:
        wrong.append(word)
        return math.nan

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        # Objects are completed from the inside out, so the number may be in one that is still open.
        place = next((name for name, value in pairs if _holds_nan(value)), None) if wrong else None
        if place is not None:
            raise ValueError(f"{place:.60}: {wrong[0]:.24} is {_NO_NUMBER}")
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!r:.60} is there twice")
        return found

    value = json.loads(
        text,
        object_pairs_hook=entries,
        parse_int=whole,
        parse_float=fraction,
        parse_constant=constant,
    )
    if wrong:
        raise ValueError(f"{wrong[0]:.24} is {_NO_NUMBER}")
    return value


def _holds_nan(value: object) -> bool:
    if isinstance(value, list):
        return any(_holds_nan(entry) for entry in value)
    return isinstance(value, float) and math.isnan(value)


# Dataclasses from JSON --------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, for ``Annotated`` fields that `build` fills."""

    low: float
    high: float


Count = Annotated[int, Range(0, _EXACT)]
"""A whole number that counts something."""


def build(kind: type[T], value: object, where: str = "") -> T:
    """Build a dataclass from a JSON object, checking the types and ranges of its fields.

    Args:
        kind: The dataclass. Fields may be ``bool``, ``int``, ``float``, ``str``, ``Any``,
            ``Literal``, other dataclasses, tuples and mappings of these, any of them ``| None``,
            and ``Annotated`` with a `Range`. Unknown names are ignored.
        value: The parsed JSON.
        where: Name of the value in messages; empty at the top level.

    Raises:
        ValueError: A field is missing, out of range or of another type; the message starts with
            its name, such as ``choices[3].p50.cpu``. Also what the dataclass itself raises.
    """
    assert dataclasses.is_dataclass(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is {_kind(value)}, not an object")
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            given[field.name] = _typed(hints[field.name], value[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Check a value against a type; convert lists to tuples, and whole numbers to floats."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        number = _typed(parts[0], value, name)
        for bounds in (part for part in parts[1:] if isinstance(part, Range)):
            if not bounds.low <= number <= bounds.high:
                raise ValueError(
                    f"{name} is {number!r:.40}, not from {bounds.low:g} to {bounds.high:g}"
                )
        return number
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        (other,) = (part for part in parts if part is not type(None))
        return _typed(other, value, name)
    if origin is Literal:
        if value not in parts:
            raise ValueError(f"{name} is {value!r:.40}, not one of {', '.join(map(str, parts))}")
        return value
    if origin is tuple:
        return _tuple(parts, value, name)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {_kind(value)}, not an object")
        return {key: _typed(parts[1], entry, f"{name}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, name)
    return _scalar(hint, value, name)


def _tuple(parts: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {_kind(value)}, not a list")
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
    if len(kinds) != len(value):
        raise ValueError(f"{name} has {len(value)} entries, not {len(kinds)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_typed(kind, entry, f"{name}[{i}]") for i, (kind, entry) in enumerate(pairs))


def _scalar(hint: type, value: Any, name: str) -> Any:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    assert hint in words, f"{name}: build knows no {hint}"
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{name} is {_kind(value)}, not {words[hint]}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a finite number")
    return value


def _kind(value: object) -> str:
    """Name the type of a JSON value."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else f"{value!r:.40}"
