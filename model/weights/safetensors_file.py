"""Reads a safetensors file, with its header checked and tensors mapped into memory; or writes one.

Source: the format's description, https://github.com/huggingface/safetensors.
"""

import json
import math
import mmap
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import open_input, read_json

_MAX_HEADER = 25_000_000  # a hundred times the published model's; the format allows more
_MAX_DIMS = 64  # per tensor
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
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
MAPPING = "cannot be mapped into memory; raise the limit of 'ulimit -v', or free some memory"

TensorSpec = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor of a safetensors file; its bytes are ``begin`` to ``end`` of the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    end: int


class SafetensorsFile:
    """One safetensors file, mapped read-only when the first tensor is read.

    The library's own reader maps copy-on-write, which the kernel counts as committed memory: it
    cannot open a file larger than the host's memory, not even to read the header.

    Attributes:
        path: The file.
        shapes: Key -> (shape, dtype).
        metadata: Texts by name, as written.
    """

    def __init__(
        self,
        path: Path,
        what: str = "weights",
        *,
        cure: str = "download the file again",
        missing: str = "check the path",
    ) -> None:
        """Read the header.

        Args:
            path: The file.
            what: What the file is to the user.
            cure: What to do if it is damaged.
            missing: What to do if it is missing.

        Raises:
            UserError: It is missing, not a regular file, truncated, damaged, or has an unsupported
                dtype.
        """
        self.path = path
        try:
            with open_input(path, what, missing=missing) as file:
                size = os.fstat(file.fileno()).st_size
                self._entries, self.metadata = _read_header(path, file, size, cure)
        except _DamagedError as error:
            raise UserError(f"{path}: truncated or damaged ({error}); {cure}") from None
        self.shapes: dict[str, TensorSpec] = {
            key: (entry.shape, entry.dtype) for key, entry in self._entries.items()
        }
        self._map: mmap.mmap | None = None

    def read(self, key: str) -> Tensor:
        """See `TensorFiles.read`."""
        entry = self._entries[key]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path}: {MAPPING} ({error})") from None
            if len(self._map) < entry.end:
                raise UserError(f"{self.path}: has become shorter while it was read; try again")
        with warnings.catch_warnings():  # that the tensor must not be written to
            warnings.simplefilter("ignore")
            data = torch.frombuffer(
                self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin
            )
        return data.view(entry.dtype).reshape(entry.shape)

    def close(self) -> None:
        """Release the file."""
        self._map = None  # unmapped with the last tensor that was read


class _DamagedError(Exception):
    """A file does not hold what its header says."""


def _read_header(
    path: Path, file: BinaryIO, size: int, cure: str
) -> tuple[dict[str, _Entry], Mapping[str, str]]:
    """Read the entries of a safetensors file: 8 bytes header length, header in JSON, data.

    Raises:
        _DamagedError: The header is malformed, or does not cover the file exactly.
        UserError: It is not usable JSON, or a tensor has an unsupported dtype.
    """
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if start > size or length > _MAX_HEADER:
        raise _DamagedError(f"{size} bytes, no header of a safetensors file")
    name = f"{path}: truncated or damaged, its header"
    header = read_json(file.read(length), name, cure=cure, limit=_MAX_HEADER)
    metadata = header.pop("__metadata__", None) or {}
    try:
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError
        entries = {key: _read_entry(path, key, value, start) for key, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise _DamagedError("its header cannot be understood") from None
    end = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise _DamagedError(f"its tensors {'overlap' if entry.begin < end else 'leave gaps'}")
        end = entry.end
    if size != end:
        raise _DamagedError(f"{size} bytes, its header says {end}")
    return entries, metadata


def _read_entry(path: Path, key: str, value: dict[str, Any], start: int) -> _Entry:
    """Parse one header entry; a malformed one raises any of what ``_read_header`` catches.

    Raises:
        UserError: Its dtype is not supported.
    """
    dtype = _SAFETENSORS_DTYPES.get(value["dtype"])
    if dtype is None:
        raise UserError(
            f"{path}: {key:.80} is stored as {value['dtype']!r:.20}, which is not understood; use "
            "a file in BF16, F16 or F32"
        )
    shape = tuple(operator.index(size) for size in value["shape"])
    begin, end = (operator.index(offset) for offset in value["data_offsets"])
    possible = len(shape) <= _MAX_DIMS and min(shape, default=0) >= 0 and begin >= 0
    if not possible or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("sizes and offsets do not agree")
    return _Entry(shape=shape, dtype=dtype, begin=start + begin, end=start + end)


def write_safetensors(
    file: BinaryIO,
    tensors: Iterable[tuple[str, TensorSpec, Callable[[], Tensor]]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, one tensor at a time: host memory for the largest suffices.

    Args:
        file: Stream to write to.
        tensors: Key, shape, dtype, and a function that returns the tensor when its turn comes, on
            any device.
        metadata: Texts by name.
    """
    names = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}
    entries, end = list(tensors), 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, (shape, dtype), _ in entries:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for key, (shape, dtype), give in entries:
        value = give().detach()
        assert (tuple(value.shape), value.dtype) == (tuple(shape), dtype), key
        file.write(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
