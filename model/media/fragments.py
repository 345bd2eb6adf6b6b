"""Truncates fragmented MP4 that ends anywhere to what plays.

A box is 4 bytes of size, 4 of name, and content (ISO/IEC 14496-12). A fragment is the box ``moof``,
which lists the samples of every track, and the box ``mdat``, which holds them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_HEAD = 8


def cut_to_whole_fragments(path: Path) -> int:
    """Remove what follows the last complete fragment of a file.

    Args:
        path: The file; nothing else writes to it.

    Returns:
        Number of frames left in the first track.

    Raises:
        OSError: The file cannot be read or truncated.
    """
    frames = end = described = 0
    with path.open("r+b") as file:
        for name, start, stop in _boxes_of(file):
            if name == b"moof":
                file.seek(start)
                described = _frames(file.read(stop - start))
            elif name == b"mdat":
                frames, end, described = frames + described, stop, 0
        file.truncate(end)
    return frames


def _boxes_of(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each complete box of a file, without reading its content."""
    size, place = file.seek(0, 2), 0
    while place + _HEAD <= size:
        file.seek(place)
        head = file.read(_HEAD)
        end = place + int.from_bytes(head[:4], "big")
        if not place + _HEAD <= end <= size:
            return
        yield head[4:], place + _HEAD, end
        place = end


def _frames(moof: bytes) -> int:
    """Count the samples of the first track that a fragment's description lists."""
    frames = 0
    for name, track in _boxes_in(moof):
        if name != b"traf":
            continue
        inner = list(_boxes_in(track))
        header = next(content for name, content in inner if name == b"tfhd")
        if int.from_bytes(header[4:8], "big") == 1:  # after version and flags
            runs = (content for name, content in inner if name == b"trun")
            frames += sum(int.from_bytes(run[4:8], "big") for run in runs)
    return frames


def _boxes_in(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each box within a box."""
    place = 0
    while place + _HEAD <= len(content):
        end = place + max(int.from_bytes(content[place : place + 4], "big"), _HEAD)
        yield content[place + 4 : place + _HEAD], content[place + _HEAD : end]
        place = end
