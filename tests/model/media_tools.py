"""Makes and measures sound and video files for the media tests."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from livetalk_model.media.audio import SAMPLE_RATE, AudioReader


def write_wav(
    path: Path,
    data: bytes,
    *,
    rate: int = 16000,
    channels: int = 1,
    bits: int = 16,
    tag: int = 1,
    declared: int | None = None,
) -> Path:
    """A WAV file whose data chunk may declare another size in bytes than it has."""
    size = len(data) if declared is None else declared
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * align, align, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    path.write_bytes(b"RIFF" + struct.pack("<I", min(36 + size, 2**32 - 1)) + body + data)
    return path


def sound_frame(block_CN: np.ndarray, rate: int, layout: str, start: int) -> av.AudioFrame:
    """A frame of float32 [channels, n] whose stamp is ``start`` samples."""
    # Interleaved: PyAV takes no eight planes.
    packed = np.ascontiguousarray(block_CN.T, np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
    return frame


def write_sound(
    path: Path, samples_CN: np.ndarray, rate: int, codec: str, layout: str, *, video: bool = False
) -> Path:
    """Encode float32 [channels, n] into the container of the path's ending."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25) if video else None
        if picture is not None:
            picture.width = picture.height = 64
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, samples_CN.shape[1], 1000):
            block = samples_CN[:, start : start + 1000]
            container.mux(stream.encode(sound_frame(block, rate, layout, start)))
        container.mux(stream.encode(None))
        if picture is not None:
            for _ in range(3 * samples_CN.shape[1] * 25 // rate):  # thrice the sound's length
                black = np.zeros((64, 64, 3), np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
            container.mux(picture.encode(None))
    return path


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a player finds in a video file."""

    frames: list[np.ndarray]
    times: list[float]
    rate: Fraction
    colour: tuple[int, int, int, int]
    pixels: str
    declared: dict[str, float]
    sound: np.ndarray | None
    sound_rate: int


def probe_video(path: Path) -> Probe:
    """Decode all of a video file; ``sound`` is float32 [channels, n]."""
    frames, times, sound = [], [], []
    with av.open(str(path)) as container:
        picture = container.streams.video[0]
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time)
            else:
                assert frame.format.name == "fltp"
                sound.append(frame.to_ndarray())
        audio = container.streams.audio
        context = picture.codec_context
        return Probe(
            frames=frames,
            times=times,
            rate=picture.average_rate,
            colour=(
                context.colorspace,
                context.color_primaries,
                context.color_trc,
                context.color_range,
            ),
            pixels=context.pix_fmt,
            declared={
                stream.type: float(stream.duration * stream.time_base)
                for stream in container.streams
            },
            sound=np.concatenate(sound, axis=1) if sound else None,
            sound_rate=audio[0].rate if audio else 0,
        )


def read_boxes(data: bytes, within: str = "") -> Iterator[tuple[str, bytes]]:
    """Path (as ``moov/trak/tkhd``) and content of every box of an MP4 file, parents first."""
    place = 0
    while place < len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        path = within + name.decode("latin-1")
        assert 8 <= size <= len(data) - place, (path, size)
        yield path, data[place + 8 : place + size]
        if name in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"):
            yield from read_boxes(data[place + 8 : place + size], path + "/")
        place += size


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sound file as `AudioReader` reads it."""

    samples: np.ndarray
    source_rate: int
    channels: int
    codec: str
    declared_samples: int | None
    decoded_samples: int
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def read_audio(path: Path) -> Clip:
    """Read a whole sound file."""
    with AudioReader(path) as reader:
        return Clip(
            samples=np.concatenate(list(reader)),
            source_rate=reader.source_rate,
            channels=reader.channels,
            codec=reader.codec,
            declared_samples=reader.declared_samples,
            decoded_samples=reader.decoded_samples,
            warnings=tuple(reader.warnings),
        )
