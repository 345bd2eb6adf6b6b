"""Interprets what a WAV file's header says about its length."""

import io
import struct
from typing import BinaryIO

_PCM_TAGS = (0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE)
"""WAV formats whose blocks hold one sample per channel: PCM, float, A-law, mu-law, extensible."""
_STREAMED_BYTES = 0x7FFF0000
"""A chunk of this size or more is a placeholder from a program that wrote to a pipe."""
_WIDE_STREAMED_BYTES = 1 << 62
"""The same in a chunk ds64."""
_ROUND_BYTES = (100_000_000, 1_000_000)
"""From the first on, a multiple of the second is a round number that nobody recorded."""
_POWER_BYTES = (1 << 27, 4096)
"""From the first on, a power of two, or less than the second below one, is also round."""


def declared_wav_samples(file: BinaryIO) -> int | None:
    """Read how many samples per channel the header of a WAV file (RIFF or RF64) declares.

    Programs that write to a pipe, especially speech synthesisers, do not know the length in advance
    and write a placeholder. A declared size is taken for one if it is 0 or close to 2 or 4 GiB;
    and, if the file is shorter than declared and ends with a whole sample, if the size is a round
    number (a multiple of a million from a hundred million on, or a power of two, minus at most a
    header, from 128 MiB on) or exceeds that of the whole RIFF form. Any other size beyond the end
    of the file comes from a truncated copy of a finished recording.

    Source: Microsoft "Multimedia Programming Interface 1.0" (RIFF), EBU Tech 3306 (RF64).

    Args:
        file: The file, at its start; any contents.

    Returns:
        The number, or None if the header has none: a placeholder, a compressed format, not a WAV
        file.
    """
    riff = file.read(12)
    if riff[:4] not in (b"RIFF", b"RF64") or riff[8:] != b"WAVE":
        return None
    wide_size: int | None = None
    block_bytes = 0
    while len(header := file.read(8)) == 8:
        name, size = header[:4], int.from_bytes(header[4:], "little")
        body_start = file.tell()
        if name == b"data":
            if riff[:4] == b"RF64" and wide_size is not None:
                size = wide_size
                if size == 0 or size >= _WIDE_STREAMED_BYTES:
                    return None
            else:
                held = file.seek(0, io.SEEK_END) - body_start
                form_end = 8 + int.from_bytes(riff[4:8], "little")
                clean_end = block_bytes and held % block_bytes == 0
                if _is_streamed(size) or (
                    size > held
                    and clean_end
                    and (
                        _is_round(size)
                        or _is_streamed(form_end - 8)
                        or form_end < body_start + size
                    )
                ):
                    return None
            return size // block_bytes if block_bytes else None
        if name == b"fmt ":
            tag, _, _, _, align = struct.unpack("<HHIIH", file.read(14).ljust(14, b"\0"))
            block_bytes = align if tag in _PCM_TAGS else 0
        elif name == b"ds64":
            wide_size = int.from_bytes(file.read(16)[8:], "little")
        file.seek(body_start + size + size % 2)
    return None


def _is_streamed(size: int) -> bool:
    return size == 0 or size >= _STREAMED_BYTES


def _is_round(size: int) -> bool:
    least, step = _ROUND_BYTES
    if size >= least and size % step == 0:
        return True
    least, slack = _POWER_BYTES
    return size >= least - slack and (1 << (size - 1).bit_length()) - size < slack
