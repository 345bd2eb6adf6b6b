"""Read tensors by name from checkpoint files, mapped into memory instead of copied.

Formats: ``.safetensors`` (one file, or shards with an index) and ``torch.save`` files read with
``weights_only=True``, so that no code in a checkpoint ever runs.
"""

import json
import math
import mmap
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import list_keys

from .config import read_json

# Names that diffusers, transformers and torch give to weights in a folder, best first.
_FOLDER_NAMES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
_MAX_HEADER = 100_000_000  # of the format
_PICKLED_SUFFIXES = (".pth", ".pt", ".bin")
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_SAFETENSORS_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

TensorSpec = tuple[tuple[int, ...], torch.dtype]


class _Part(Protocol):
    """One open file."""

    path: Path
    shapes: dict[str, TensorSpec]

    def read(self, key: str) -> Tensor: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor of a safetensors file; its bytes are ``begin`` to ``end`` of the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int


class _SafetensorsFile:
    """One safetensors file, mapped read-only when the first tensor is read.

    The library's own reader maps copy-on-write, which the kernel counts as committed memory: it
    cannot open a file larger than the host's memory, not even to look at the header.

    Source: the format's description, https://github.com/huggingface/safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._entries = _read_header(path)
        except _DamagedError as error:
            raise UserError(
                f"{path}: truncated or damaged ({error}); download the file again"
            ) from None
        self.shapes: dict[str, TensorSpec] = {
            key: (entry.shape, entry.dtype) for key, entry in self._entries.items()
        }
        self._map: mmap.mmap | None = None

    def read(self, key: str) -> Tensor:
        entry = self._entries[key]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():  # that the tensor must not be written to
            warnings.simplefilter("ignore")
            data = torch.frombuffer(
                self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin
            )
        return data.view(entry.dtype).reshape(entry.shape)

    def close(self) -> None:
        self._map = None  # unmapped with the last tensor that was read


class _DamagedError(Exception):
    """A file does not hold what its header says."""


def _read_header(path: Path) -> dict[str, _Entry]:
    """Entries of a safetensors file: 8 bytes length of the header, header in JSON, data.

    Raises:
        _DamagedError: The header is no such header, or does not cover the file exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length
        if start > size or length > _MAX_HEADER:
            raise _DamagedError(f"{size} bytes, no header of a safetensors file")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {key: _read_entry(value, start) for key, value in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise _DamagedError("its header cannot be understood") from None
    end = max((entry.end for entry in entries.values()), default=start)
    if size != end:
        raise _DamagedError(f"{size} bytes, its header says {end}")
    if sum(entry.end - entry.begin for entry in entries.values()) != end - start:
        raise _DamagedError("its tensors overlap or leave gaps")
    return entries


def _read_entry(value: dict[str, Any], start: int) -> _Entry:
    """One entry of the header; a malformed one raises any of what ``_read_header`` catches."""
    dtype = _SAFETENSORS_DTYPES.get(value["dtype"])
    if dtype is None:
        raise _DamagedError(f"unknown dtype {value['dtype']}")
    shape = tuple(operator.index(size) for size in value["shape"])
    begin, end = (operator.index(offset) for offset in value["data_offsets"])
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("sizes and offsets do not agree")
    return _Entry(shape=shape, dtype=dtype, begin=start + begin, end=start + end)


class _PickledFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _load_pickled(path)
        self.shapes: dict[str, TensorSpec] = {
            key: (tuple(value.shape), value.dtype) for key, value in self._tensors.items()
        }

    def read(self, key: str) -> Tensor:
        return self._tensors[key]

    def close(self) -> None:
        self._tensors = {}


def _load_pickled(path: Path) -> dict[str, Tensor]:
    """State dict of a ``torch.save`` file: mapped if it is a zip, read if older than that."""
    with path.open("rb") as file:
        magic = file.read(4)
    is_zip = magic == _ZIP_MAGIC
    if not is_zip and not magic.startswith(_PICKLE_MAGIC):
        raise UserError(f"{path}: not a PyTorch weights file; download the file again")
    try:
        with warnings.catch_warnings():  # about odd files, which are refused below if they matter
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:
        raise UserError(f"{path}: {_pickle_problem(error)}") from None
    tensors = content if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name; expected a state dict")
    others = [
        str(key)
        for key, value in tensors.items()
        if not (isinstance(key, str) and isinstance(value, Tensor) and not value.is_sparse)
    ]
    if others:
        raise UserError(
            f"{path}: {len(others)} entries are not tensors ({list_keys(others)}); "
            "expected a plain state dict"
        )
    return dict(tensors)


def _pickle_problem(error: Exception) -> str:
    """What is wrong with a file that torch refused, in one line."""
    message = str(error)
    refused = re.search(r"GLOBAL:? ([\w.]+)", message)
    if refused:
        return f"holds code ({refused[1]}), which was not run; use a file with tensors only"
    if "Weights only load failed" in message:
        return "cannot be read as plain tensors; download the file again"
    if "unable to mmap" in message:
        return "too large to be mapped; free some memory"
    reason = message.partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"truncated or damaged ({reason}); download the file again"


class TensorFiles:
    """Tensors by name in one or more open files.

    Attributes:
        name: What was opened, for messages: the file or the folder.
        paths: The files with tensors in them.
        shapes: Key -> (shape, dtype), known from the headers alone.
    """

    def __init__(self, name: Path, parts: Sequence[_Part]) -> None:
        """Take ownership of open files, which must not share a key."""
        self.name = name
        self.paths = tuple(part.path for part in parts)
        self.shapes: dict[str, TensorSpec] = {}
        self._parts = parts
        self._owner: dict[str, _Part] = {}
        for part in parts:
            twice = sorted(part.shapes.keys() & self.shapes.keys())
            if twice:
                self.close()
                raise UserError(
                    f"{part.path}: {len(twice)} keys are in {self._owner[twice[0]].path.name} too "
                    f"({list_keys(twice)}); remove the stale file"
                )
            self.shapes |= part.shapes
            self._owner |= dict.fromkeys(part.shapes, part)

    def read(self, key: str) -> Tensor:
        """Tensor of that key, on the CPU in the file's dtype; valid until ``close``.

        It is a view of the mapped file: pages come from the disk when they are touched and take
        no anonymous memory. (A ``torch.save`` file of the format before PyTorch 1.6 cannot be
        mapped; such a file is in memory as a whole.) Do not write to it.
        """
        return self._owner[key].read(key)

    def path_of(self, key: str) -> Path:
        """File that holds the key."""
        return self._owner[key].path

    def close(self) -> None:
        """Let go of the files."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        """Use as a context manager that closes the files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()


def open_weights(paths: str | Path | Sequence[str | Path]) -> TensorFiles:
    """Open a checkpoint; only headers are read.

    Args:
        paths: A ``.safetensors`` or ``torch.save`` file, a ``.safetensors.index.json``, a folder
            with one of the usual names in it, or several files.

    Returns:
        The open tensors.

    Raises:
        UserError: A file is missing, empty, truncated or not a checkpoint; a shard that the index
            names is missing or lacks a key; a pickle holds code.
    """
    if isinstance(paths, str | Path):
        name = Path(paths)
        source = _find_in_folder(name) if name.is_dir() else name
        if source.name.endswith(".index.json"):
            return _open_index(name, source)
        return TensorFiles(name, [_open_part(source)])
    files = [Path(path) for path in paths]
    assert files, "no files given"
    return TensorFiles(files[0].parent, _open_parts(files))


def _find_in_folder(folder: Path) -> Path:
    for name in _FOLDER_NAMES:
        if (folder / name).is_file():
            return folder / name
    shards = sorted(folder.glob("*-of-*.safetensors"))
    if shards:
        raise UserError(
            f"{folder}: {len(shards)} shards but no .safetensors.index.json; "
            "download the index as well"
        )
    raise UserError(f"{folder}: no weights found; expected one of {', '.join(_FOLDER_NAMES)}")


def _open_index(name: Path, index: Path) -> TensorFiles:
    """Shards of an index; every key must be in the shard that the index names for it."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{index}: has no weight_map; download the file again")
    # A shard is a file beside the index: a path would let an index read anything.
    outside = [str(shard) for shard in shard_of.values() if Path(str(shard)).name != shard]
    if outside:
        raise UserError(f"{index}: {outside[0]!r} is not a file name; download the file again")
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(shards)} shards missing "
            f"({list_keys(missing)}); download them"
        )
    files = TensorFiles(name, _open_parts([index.parent / shard for shard in shards]))
    absent = [
        key
        for key, shard in shard_of.items()
        if key not in files.shapes or files.path_of(key).name != shard
    ]
    if absent:
        files.close()
        raise UserError(
            f"{index}: {len(absent)} keys are not in the shard it names ({list_keys(absent)}); "
            "index and shards do not belong together, download them again"
        )
    return files


def _open_parts(paths: Sequence[Path]) -> list[_Part]:
    parts: list[_Part] = []
    try:
        for path in paths:
            parts.append(_open_part(path))
    except UserError:
        for part in parts:
            part.close()
        raise
    return parts


def _open_part(path: Path) -> _Part:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if size == 0:
        raise UserError(f"{path}: empty file; download it again")
    if path.suffix == ".safetensors":
        return _SafetensorsFile(path)
    if path.suffix in _PICKLED_SUFFIXES:
        return _PickledFile(path)
    raise UserError(
        f"{path}: unknown kind of weights file; expected .safetensors or "
        f"{', '.join(_PICKLED_SUFFIXES)}"
    )
