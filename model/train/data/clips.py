"""Clips on disk: a folder of safetensors files, each complete or absent, and an index in JSON.

A clip is one file with ``frames`` uint8 [T, H, W, 3], ``audio`` int16 [T * 640] at 16 kHz and
``truth`` float32 [T, K], where K is 0 for clips of which nothing is known but what is seen.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import Range, build, check_folder, find, read_json
from livetalk_kernels.outputs import new_file, output_error, write_json
from livetalk_kernels.units import data_size

from ...weights.safetensors_file import SafetensorsFile, TensorSpec
from ..faces.mouth import HOP

INDEX = "index.json"
FORMAT = "livetalk clips"
VERSION = 1
MAX_CLIP_BYTES = 1 << 29
"""Maximum bytes of a clip's frames."""
MAX_FRAMES = 100_000
_INDEX_BYTES = 256 << 20
_INDEX_SECONDS = 5.0  # minimum between two writes of the index
_AGAIN = "make the clips again with 'livetalk dataset', in a new folder"
_FIRST = "make clips with 'livetalk dataset --synthetic 256 --output DIR'"


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A clip in memory.

    Attributes:
        frames: uint8 [T, H, W, 3].
        audio: int16 [T * 640] at 16 kHz.
        truth: float32 [T, K].
        facts: Its origin, as plain values.
    """

    frames: NDArray[np.uint8]
    audio: NDArray[np.int16]
    truth: NDArray[np.float32]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A clip in the index.

    Attributes:
        file: Name in the folder.
        frames: Number of frames.
        facts: See `Clip`; ``prompt`` describes the scene, if the clip has its own.
    """

    file: str
    frames: Annotated[int, Range(1, MAX_FRAMES)]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Reject files outside the folder, and prompts that are no text."""
        if not isinstance(self.facts.get("prompt", ""), str):
            raise ValueError(f"{self.file!r:.60} has a prompt that is not text")
        if os.path.basename(self.file) != self.file or not self.file.endswith(".safetensors"):
            raise ValueError(f"file is {self.file!r:.60}, not the name of a clip")


@dataclass(frozen=True, kw_only=True)
class Index:
    """The contents of a folder of clips.

    Attributes:
        format: Identifies the type of file.
        version: Version of the format.
        complete: Whether everything that was requested is there.
        size: Pictures' (H, W).
        truth: Names of the truth's columns.
        settings: Settings that the clips were made with.
        clips: The clips.
    """

    format: str = FORMAT
    version: int = VERSION
    complete: bool = False
    size: tuple[int, int]
    truth: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    clips: tuple[Entry, ...] = ()


class ClipWriter:
    """Fills a folder with clips, and resumes where an earlier run was stopped.

    Attributes:
        folder: The folder.
        entries: The existing clips, by name.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        """Create the folder, or adopt the clips that it has.

        Args:
            folder: A new folder, or one begun with the same settings.
            index: The index to write, without clips.

        Raises:
            UserError: It has other files, or clips with other settings, or is not writable.
        """
        self.folder, self._index = folder, index
        self.entries: dict[str, Entry] = {}
        self._written = -_INDEX_SECONDS
        if find(folder / INDEX).kind != "missing":
            there = read_index(folder / INDEX)
            self._check_same(there)
            self.entries = {
                entry.file: entry
                for entry in there.clips
                if find(folder / entry.file).kind == "file"
            }
        elif find(folder).kind == "file":
            raise UserError(f"{folder}: is a file; give a folder")
        elif find(folder).kind == "folder" and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty, and holds no clips; give a new folder")
        self.write_index()

    def store(self, file: str, clip: Clip) -> Entry:
        """Write a clip, completely or not at all; it counts once passed to `enter`."""
        tensors = {"frames": clip.frames, "audio": clip.audio, "truth": clip.truth}
        with new_file(self.folder / file) as stream:
            stream.write(save({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
        return Entry(file=file, frames=len(clip.frames), facts=clip.facts)

    def enter(self, *entries: Entry) -> None:
        """Register clips."""
        self.entries |= {entry.file: entry for entry in entries}
        if time.monotonic() - self._written > _INDEX_SECONDS:
            self.write_index()

    def write_index(self, *, complete: bool = False) -> None:
        """Write the index; call it at the end, even of a run that is stopped."""
        clips = tuple(self.entries[file] for file in sorted(self.entries))
        value = asdict(self._index) | {"complete": complete, "clips": [asdict(c) for c in clips]}
        write_json(self.folder / INDEX, value)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the folder if there are no clips."""
        with suppress(OSError):  # the folder contains something else by now
            (self.folder / INDEX).unlink()
            self.folder.rmdir()

    def _check_same(self, there: Index) -> None:
        mine = {"size": self._index.size, "truth": self._index.truth, **self._index.settings}
        others = {"size": there.size, "truth": there.truth, **there.settings}
        # Through JSON, which has no tuples.
        mine, others = (json.loads(json.dumps(value)) for value in (mine, others))
        names = sorted(
            name for name in mine.keys() | others.keys() if mine.get(name) != others.get(name)
        )
        if names:
            raise UserError(
                f"{self.folder}: has clips made with another {', '.join(names)} "
                f"({_shown(others, names)}, not {_shown(mine, names)}); give another folder"
            )


class Clips:
    """A folder of clips to read from.

    Attributes:
        folder: The folder.
        index: Its index.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read the index and every clip's header.

        Raises:
            UserError: There are no clips, or one of them is missing, damaged or does not fit.
        """
        self.folder = check_folder(folder, _FIRST)
        self.index = read_index(self.folder / INDEX)
        if not self.index.clips:
            raise UserError(f"{self.folder}: holds no clips yet; run its 'livetalk dataset' again")
        self._files = [self._open(entry) for entry in self.index.clips]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._files)

    def frames(self, clip: int) -> Tensor:
        """Return the pictures of a clip, uint8 [T, H, W, 3]; do not write to them."""
        return self._files[clip].read("frames")

    def sound(self, clip: int) -> Tensor:
        """Return the sound of a clip, float32 [T * 640] at 16 kHz."""
        return self._files[clip].read("audio").float() / 32768

    def prompt(self, clip: int) -> str | None:
        """Return a clip's own prompt; None without one."""
        return self.index.clips[clip].facts.get("prompt")

    def truth(self, clip: int) -> Tensor:
        """Return the truth of each frame, float32 [T, K]; do not write to it."""
        return self._files[clip].read("truth")

    def _open(self, entry: Entry) -> SafetensorsFile:
        path = self.folder / entry.file
        file = SafetensorsFile(path, "clip", cure=_AGAIN, missing=_AGAIN)
        height, width = self.index.size
        wanted: Mapping[str, TensorSpec] = {
            "frames": ((entry.frames, height, width, 3), torch.uint8),
            "audio": ((entry.frames * HOP,), torch.int16),
            "truth": ((entry.frames, len(self.index.truth)), torch.float32),
        }
        if file.shapes != wanted:
            raise UserError(f"{path}: is not the clip that {INDEX} describes; {_AGAIN}")
        return file


def read_index(path: Path) -> Index:
    """Read the index of a folder of clips.

    Raises:
        UserError: It is missing, damaged or has another version.
    """
    value = read_json(path, "index", cure=_AGAIN, limit=_INDEX_BYTES, missing=_FIRST)
    if value.get("format") != FORMAT:
        raise UserError(f"{path}: is not an index of clips; {_FIRST}")
    if value.get("version") != VERSION:
        raise UserError(
            f"{path}: is of version {value.get('version')!r:.20}, here {VERSION} is read; {_AGAIN}"
        )
    try:
        return build(Index, value)
    except ValueError as error:
        raise UserError(f"{path}: is not a usable index ({error}); {_AGAIN}") from None


def check_learnable(folder: Path) -> None:
    """Refuse clips that no training may learn from; of the folder, only the index is read.

    Raises:
        UserError: They are held out for `livetalk evaluate`, some are still to be made, or there
            are none.
    """
    index = read_index(check_folder(folder, _FIRST) / INDEX)
    if index.settings.get("split") == "test":
        raise UserError(
            f"{folder}: has the clips of --split test, by which 'livetalk evaluate' judges; make "
            "others with 'livetalk dataset --split train'"
        )
    if not index.complete:
        raise UserError(
            f"{folder}: is incomplete; run its 'livetalk dataset' again, which makes the rest"
        )


def check_clip_size(size: tuple[int, int], frames: int) -> None:
    """Check that a clip has a manageable size.

    Raises:
        UserError: It is too large.
    """
    needed = frames * size[0] * size[1] * 3
    if needed > MAX_CLIP_BYTES:
        raise UserError(
            f"a clip of {frames} frames of {size[0]}x{size[1]} takes {needed >> 20} MiB, "
            f"{MAX_CLIP_BYTES >> 20} at most; choose fewer --seconds or a smaller --size"
        )


def check_room(folder: Path, needed: int) -> None:
    """Check that a disk has room for ``needed`` bytes.

    Raises:
        UserError: It does not.
    """
    nearest = next(
        parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists()
    )
    try:
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        raise output_error(folder, error) from None
    if needed > free:
        raise UserError(
            f"{folder}: the clips take {data_size(needed)}, {data_size(free)} are free there; "
            "choose fewer or shorter clips, or another folder"
        )


def _shown(values: Mapping[str, Any], names: list[str]) -> str:
    return ", ".join(f"{values.get(name)!s:.40}" for name in names)
