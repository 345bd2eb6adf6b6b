"""Decides which files are opened for their sound, and which of their tracks are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from livetalk_kernels.errors import UserError

FORMATS = (
    *(
        "wav",
        "w64",
        "aiff",
        "au",
        "caf",
        "voc",
        "sln",
        "iff",
        "dsf",
        "sox",
        "nistsphere",
    ),  # samples as they are
    *(
        "mp3",
        "aac",
        "loas",
        "ac3",
        "eac3",
        "dts",
        "dtshd",
        "truehd",
        "mlp",
        "amr",
        "amrnb",
        "amrwb",
    ),
    *("flac", "ogg", "ape", "wv", "tta", "tak", "mpc", "mpc8"),
    *("mov", "mp4", "matroska", "webm", "mpegts", "mpeg", "avi", "asf", "flv", "rm", "mxf", "nut"),
)
"""FFmpeg's names of the containers that are opened: each includes its own sound. Playlists and
lists of files, which refer elsewhere, pictures, devices and generators are excluded."""

_LISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"[playlist]")
"""Initial bytes of files that refer to other files."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """A sound track of a file.

    Attributes:
        number: Counted from 1 among the file's sound tracks.
        codec: FFmpeg's name of the codec; None if there is no decoder for it.
        layout: FFmpeg's name of the channel layout, from the header.
        rate: Samples per second, from the header.
        language: Language code; empty if not given.
        default: Whether the file marks it as the one to play.
    """

    number: int
    codec: str | None
    layout: str
    rate: int
    language: str
    default: bool

    def __str__(self) -> str:
        """Describe it in a few words."""
        if self.codec is None:
            return f"{self.number}: no decoder"
        words = [self.codec, self.layout, f"{self.rate} Hz", self.language]
        words.append("default" if self.default else "")
        return f"{self.number}: " + " ".join(word for word in words if word)


def open_container(path: Path) -> InputContainer:
    """Open a file of one of `FORMATS`, without following references to other files.

    Raises:
        UserError: It has another format, or is damaged.
    """
    try:
        # Absolute, because FFmpeg takes "take:1.wav" for a protocol; and tags in any encoding.
        return av.open(
            str(path.absolute()),
            mode="r",
            options={"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)},
            metadata_errors="ignore",
        )
    except (av.error.FFmpegError, ValueError) as error:
        with path.open("rb") as file:
            head = file.read(16).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(_LISTS):
            raise UserError(
                f"{path}: a list that names other files, not sound; give the sound file itself"
            ) from None
        raise UserError(
            f"{path}: not a sound file that FFmpeg reads, or damaged "
            f"({reason(error)}); export it again, for example as WAV"
        ) from None


def list_tracks(container: InputContainer) -> tuple[Track, ...]:
    """List the sound tracks of a file, in file order."""
    return tuple(_track(stream, n) for n, stream in enumerate(container.streams.audio, start=1))


def candidates(container: InputContainer, path: Path, number: int | None) -> list[Track]:
    """Choose the tracks to try, best first.

    FFmpeg's own choice comes first (marked as default, not for the impaired, with the higher bit
    rate), then others marked as default, then the rest in file order.

    Args:
        container: The open file.
        path: Its path, for messages.
        number: The requested track, counted from 1; None for any.

    Returns:
        At least one track, each with a decoder.

    Raises:
        UserError: There is no sound, no such track, or no decoder.
    """
    tracks = list_tracks(container)
    if not tracks:
        raise UserError(f"{path}: has no sound; choose a file with a sound track")
    if number is not None:
        if not 1 <= number <= len(tracks):
            there = "; ".join(map(str, tracks))
            raise UserError(
                f"{path}: has no sound track {number}; choose one of its {len(tracks)} ({there})"
            )
        tracks = tracks[number - 1 : number]
    usable = [track for track in tracks if track.codec is not None]
    if not usable:
        raise UserError(f"{path}: no decoder for its sound; convert it to WAV first")
    best: Any = container.streams.best("audio")
    places = [stream.index for stream in container.streams.audio]
    favourite = places.index(best.index) + 1 if best is not None else 0
    return sorted(usable, key=lambda track: (track.number != favourite, not track.default))


def reason(error: Exception) -> str:
    """Extract FFmpeg's own words from an error, without number and file name."""
    return str(getattr(error, "strerror", None) or error).lower()


def _track(stream: AudioStream, number: int) -> Track:
    codec = stream.codec_context
    tag = str(stream.metadata.get("language", ""))
    return Track(
        number=number,
        codec=None if codec is None else codec.name,
        layout="" if codec is None else codec.layout.name,
        rate=0 if codec is None else codec.sample_rate or 0,
        language=tag if tag.isascii() and tag.isalnum() and tag != "und" else "",
        default=bool(stream.disposition & Disposition.default),
    )
