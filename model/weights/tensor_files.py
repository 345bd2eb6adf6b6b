"""Reads tensors by name from checkpoint files, mapped into memory instead of copied.

Formats: ``.safetensors`` (one file, or shards with an index) and ``torch.save`` files read with
``weights_only=True``, so that no code in a checkpoint ever runs.
"""

import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_folder, check_input, find, is_folder, open_input
from livetalk_kernels.lines import list_keys

from ..config import read_config
from .safetensors_file import FP8_DTYPES, MAPPING, SafetensorsFile, TensorSpec

# Names that diffusers, transformers and torch give to weights in a folder, best first.
_FOLDER_NAMES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
_PICKLED_SUFFIXES = (".pth", ".pt", ".bin")
_MAX_PICKLE = 64 << 20  # within a zip: the description of its tensors, not their values
_MAX_MEMBERS = 1 << 20
_ZIP_END = 1 << 17  # bytes that contain the records and the comment at the end of a zip
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
# Prefixes that programs add to names when the model is part of something larger.
_WRAPPERS = ("model.", "diffusion_model.", "_orig_mod.", "module.", "dit.")


class _Part(Protocol):
    """One open file."""

    path: Path
    shapes: dict[str, TensorSpec]

    def read(self, key: str) -> Tensor: ...

    def close(self) -> None: ...


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
    """Load the state dict of a ``torch.save`` file: mapped if it is a zip, read if older."""
    with open_input(path, "weights") as file:
        magic = file.read(4)
        is_zip = magic == _ZIP_MAGIC
        if is_zip and (problem := _zip_problem(file)):
            raise UserError(f"{path}: {problem}; download the file again")
    if not is_zip and not magic.startswith(_PICKLE_MAGIC):
        raise UserError(f"{path}: not a PyTorch weights file; download the file again")
    try:
        with warnings.catch_warnings():  # about odd files, which are rejected below if they matter
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
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (value.untyped_storage() for value in tensors.values())
    }
    shared = any(
        value.numel() * value.element_size() > value.untyped_storage().nbytes()
        for value in tensors.values()
    )
    # Otherwise a file of a few bytes could claim any amount of memory.
    if shared or sum(storages.values()) > find(path).bytes:
        raise UserError(
            f"{path}: its tensors are larger than what is stored of them; save contiguous copies"
        )
    return dict(tensors)


def _zip_problem(file: BinaryIO) -> str | None:
    """Describe what no ``torch.save`` writes into a zip and could fill the memory; None if nothing.

    Sizes are those in the directory at its end; nothing is unpacked.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_END))
    directory = _directory_bytes(file.read())
    if directory is None or directory > _MAX_PICKLE:
        return "truncated or damaged (no usable directory at the end of the zip)"
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error):
        return "truncated or damaged (no usable directory at the end of the zip)"
    if len(members) > _MAX_MEMBERS:
        return f"holds {len(members)} files, {_MAX_MEMBERS} is the most"
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        return f"holds compressed files ({list_keys(packed)}), which no torch.save writes"
    pickles = [m for m in members if m.filename.endswith(".pkl") and m.file_size > _MAX_PICKLE]
    if pickles:
        return f"{pickles[0].filename} has {pickles[0].file_size} bytes, {_MAX_PICKLE} is the most"
    if sum(member.file_size for member in members) > size:
        return "truncated or damaged (its files are larger than the zip)"
    return None


def _directory_bytes(end: bytes) -> int | None:
    """Return the size of a zip's directory, from its last bytes; None if they don't contain it."""
    place = end.rfind(b"PK\5\6")
    if place < 0 or len(end) < place + 22:
        return None
    size = int.from_bytes(end[place + 12 : place + 16], "little")
    large = end.rfind(b"PK\6\6", 0, place)  # sizes beyond 32 bits have a separate record
    if size == 0xFFFFFFFF and large >= 0:
        size = int.from_bytes(end[large + 40 : large + 48], "little")
    return size


def _pickle_problem(error: Exception) -> str:
    """Describe what is wrong with a file that torch rejected, in one line."""
    message = str(error)
    refused = re.search(r"GLOBAL:? ([\w.]+)", message)
    if refused:
        return f"holds code ({refused[1]}), which was not run; use a file with tensors only"
    if "Weights only load failed" in message:
        return "cannot be read as plain tensors; download the file again"
    if "unable to mmap" in message:
        return MAPPING
    reason = message.partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"truncated or damaged ({reason}); download the file again"


class TensorFiles:
    """Tensors by name in one or more open files.

    Attributes:
        name: What was opened, for messages: the file or the folder.
        paths: The files that contain tensors.
        shapes: Key -> (shape, dtype), known from the headers alone.
        prefix: Prefix of every key in the files, omitted here.
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
        self.prefix = _wrapper(self.shapes)
        if self.prefix:
            self.shapes = {key.removeprefix(self.prefix): s for key, s in self.shapes.items()}
            self._owner = {key.removeprefix(self.prefix): p for key, p in self._owner.items()}

    @property
    def rounded(self) -> bool:
        """Whether weights are stored in FP8, which keeps two or three bits of each."""
        return any(dtype in FP8_DTYPES for _, dtype in self.shapes.values())

    def read(self, key: str) -> Tensor:
        """Return the tensor of a key, on the CPU in the file's dtype; valid until ``close``.

        It is a view of the mapped file: pages are read from disk when touched and take no anonymous
        memory. (A ``torch.save`` file in the format before PyTorch 1.6 cannot be mapped, and is
        held in memory as a whole.) Do not write to it.
        """
        return self._owner[key].read(self.prefix + key)

    def holds(self, stored: str) -> bool:
        """Return whether the files contain a key, as stored."""
        return stored.startswith(self.prefix) and stored.removeprefix(self.prefix) in self.shapes

    def path_of(self, key: str) -> Path:
        """Return the file that contains a key."""
        return self._owner[key].path

    def close(self) -> None:
        """Release the files."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        """Return the object itself; the files are closed when the block ends."""
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
            names is missing or lacks a key; a pickle contains code.
    """
    if isinstance(paths, str | Path):
        name = Path(paths)
        source = _find_in_folder(name) if is_folder(name) else name
        if source.name.endswith(".index.json"):
            return _open_index(name, source)
        return TensorFiles(name, [_open_part(source)])
    files = [Path(path) for path in paths]
    assert files, "no files given"
    return TensorFiles(files[0].parent, _open_parts(files))


def _wrapper(keys: Iterable[str]) -> str:
    """Return the prefix that programs have added to every key; empty if one lacks it."""
    prefix = ""
    while True:
        more = (known for known in _WRAPPERS if all(k.startswith(prefix + known) for k in keys))
        found = next(more, "") if keys else ""
        if not found:
            return prefix
        prefix += found


def _find_in_folder(folder: Path) -> Path:
    check_folder(folder, "check the path")
    for name in _FOLDER_NAMES:
        if find(folder / name).kind != "missing":  # a broken link is reported as such
            return folder / name
    shards = sorted(folder.glob("*-of-*.safetensors"))
    if shards:
        raise UserError(
            f"{folder}: {len(shards)} shards but no .safetensors.index.json; "
            "download the index as well"
        )
    raise UserError(f"{folder}: no weights found; expected one of {', '.join(_FOLDER_NAMES)}")


def _open_index(name: Path, index: Path) -> TensorFiles:
    """Open the shards of an index; every key must be in the shard that the index names for it."""
    shard_of = read_config(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise UserError(f"{index}: has no weight_map; download the file again")
    # A shard is a file in the index's folder: a path would let an index read anything.
    outside = [str(shard) for shard in shard_of.values() if Path(str(shard)).name != shard]
    if outside:
        raise UserError(f"{index}: {outside[0]!r} is not a file name; download the file again")
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if find(index.parent / shard).kind == "missing"]
    if missing:
        raise UserError(
            f"{index.parent}: {len(missing)} of {len(shards)} shards missing "
            f"({list_keys(missing)}); download them"
        )
    files = TensorFiles(name, _open_parts([index.parent / shard for shard in shards]))
    absent = [
        key
        for key, shard in shard_of.items()
        if not files.holds(key) or files.path_of(key.removeprefix(files.prefix)).name != shard
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
    check_input(path, "weights")
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in _PICKLED_SUFFIXES:
        return _PickledFile(path)
    raise UserError(
        f"{path}: unknown kind of weights file; expected .safetensors or "
        f"{', '.join(_PICKLED_SUFFIXES)}"
    )
