"""Sound files in: any container, rate and channel count that PyAV reads, as 16 kHz mono blocks."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_input

SAMPLE_RATE = 16000
"""Samples per second that the audio encoder hears."""

_RATES = range(4000, 768_001)
"""Sample rates of sound; anything else is a damaged header."""
_PCM_TAGS = (0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE)
"""WAV formats whose block holds one sample per channel: PCM, float, A-law, mu-law, extensible."""
_STREAMED_BYTES = 0x7FFF0000
"""A WAV data chunk of this size or more is a placeholder of a program that wrote to a pipe."""
_ESTIMATED_DURATION = ("mp3", "aac")
"""Containers without a length field; FFmpeg estimates from the bit rate."""
_SHORTFALL = 0.5
"""Seconds by which a compressed file may fall short of its declared length without a warning."""


class SoundDecoder:
    """Decodes the first sound stream of a file at its own rate, with bounded memory.

    The file is opened, and its first samples are decoded, when the object is made, so that what
    cannot be used is refused at once.

    Attributes:
        path: The file.
        rate: Samples per second.
        channels: Channels.
        codec: FFmpeg's name of the codec.
        declared_samples: Samples per channel by the header, where it has a length field.
        decoded_samples: Samples per channel yielded so far.
        warnings: Filled in when the last block has been yielded.
    """

    def __init__(self, path: Path | str) -> None:
        """Open the file.

        Raises:
            UserError: Missing, a folder, empty, unreadable, not a sound file, or without samples.
        """
        self.path = check_input(path, "audio")
        self.decoded_samples = self.rate = 0
        self.warnings: list[str] = []
        self._damaged = 0
        try:
            # Only local files: a playlist in disguise must not reach for the network.
            # Absolute, because FFmpeg takes "take:1.wav" for a protocol; and tags of any encoding.
            self._container = av.open(
                str(self.path.absolute()),
                mode="r",
                options={"protocol_whitelist": "file"},
                metadata_errors="ignore",
            )
        except (av.error.FFmpegError, ValueError) as error:
            raise UserError(
                f"{self.path}: not a sound file that FFmpeg reads, or damaged "
                f"({_reason(error)}); export it again, for example as WAV"
            ) from None
        try:
            if not self._container.streams.audio:
                raise UserError(f"{self.path}: has no sound; choose a file with a sound track")
            self._stream = self._container.streams.audio[0]
            if self._stream.codec_context is None:
                raise UserError(f"{self.path}: no decoder for its sound; convert it to WAV first")
            self.declared_samples = None
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise UserError(
                    f"{self.path}: holds no sound samples (empty or cut off after its header); "
                    "record or export it again"
                )
            self.rate, self.codec = first.sample_rate, self._stream.codec_context.name
            if self.rate not in _RATES:
                raise UserError(
                    f"{self.path}: its header gives {self.rate} samples per second (usable: "
                    f"{_RATES.start} to {_RATES.stop - 1}); record or export it again"
                )
            self.channels = first.layout.nb_channels
            self.declared_samples = self._declared()
            self._first = first
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the samples once, as float32 [channels, n] with full scale +-1.

        Raises:
            UserError: NaN or Inf among the samples, or rate or channels change on the way.
        """
        frame: av.AudioFrame | None = self._first
        while frame is not None:
            if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
                raise UserError(
                    f"{self.path}: sample rate or channels change after {self._position()}; "
                    "convert it to WAV first"
                )
            samples_CN = _to_float(frame)
            finite_N = np.isfinite(samples_CN).all(axis=0)
            if not finite_N.all():
                raise UserError(
                    f"{self.path}: holds NaN or Inf at {self._position(int(finite_N.argmin()))}; "
                    "repair or export it again"
                )
            self.decoded_samples += samples_CN.shape[1]
            yield samples_CN
            frame = next(self._frames, None)
        self._warn()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode(self) -> Iterator[av.AudioFrame]:
        """Yield non-empty frames; damaged packets are counted and left out."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.warnings.append(
                    f"{self.path}: damaged ({_reason(error)}) after {self._position()}; "
                    "what follows is not heard; copy or export it again"
                )
                return
            if packet is None:
                return
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                self._damaged += 1
                continue
            yield from (frame for frame in frames if frame.samples)

    def _declared(self) -> int | None:
        """Samples per channel by the header; FFmpeg hides a WAV's own figure, so read it here."""
        name = self._container.format.name
        if name == "wav":
            with self.path.open("rb") as file:
                return declared_wav_samples(file)
        duration, time_base = self._stream.duration, self._stream.time_base
        if duration is None or time_base is None or name in _ESTIMATED_DURATION:
            return None
        return round(duration * time_base * self.rate)

    def _position(self, ahead: int = 0) -> str:
        return f"{(self.decoded_samples + ahead) / self.rate:.2f} s" if self.rate else "its start"

    def _warn(self) -> None:
        if self._damaged:
            self.warnings.append(
                f"{self.path}: {self._damaged} damaged packets left out; copy or export it again"
            )
        if self.declared_samples is None:
            return
        exact = self._container.format.name == "wav"
        allowed = 0 if exact else max(_SHORTFALL * self.rate, 0.01 * self.declared_samples)
        if self.declared_samples - self.decoded_samples > allowed:
            self.warnings.append(
                f"{self.path}: truncated: declared {self.declared_samples} samples, "
                f"decoded {self.decoded_samples}; what is missing is not heard; "
                "copy or export it again"
            )


class Resampler:
    """Changes the sample rate of a stream of blocks, by FFmpeg's swresample.

    N samples become exactly ceil(N * target / source), at the same times: the first output sample
    is at the time of the first input sample, and the last input sample is heard. swresample alone
    rounds the length either way and drops inputs shorter than its filter; here it is fed silence
    at the end and its surplus is cut.
    """

    def __init__(self, source_rate: int, target_rate: int, *, channels: int) -> None:
        """Choose the rates (samples per second) and the channel count (1 or 2)."""
        assert channels in (1, 2)
        self._source, self._target = source_rate, target_rate
        self._channels = channels
        self._layout = "mono" if channels == 1 else "stereo"
        self._swr = av.AudioResampler(format="fltp", layout=self._layout, rate=target_rate)
        self._taken = self._given = 0

    def push(self, samples_CN: np.ndarray) -> np.ndarray:
        """Take float32 [channels, n]; return what is ready, float32 [channels, m], m >= 0."""
        self._taken += samples_CN.shape[1]
        if self._source == self._target:
            return samples_CN
        return self._collect(self._swr.resample(self._frame(samples_CN)))

    def finish(self) -> np.ndarray:
        """Return the rest, float32 [channels, m]; the object is used up."""
        if self._source == self._target or not self._taken:
            return np.zeros((self._channels, 0), np.float32)
        silence = np.zeros((self._channels, self._source // 5), np.float32)
        frames = self._swr.resample(self._frame(silence)) + self._swr.resample(None)
        whole = -(-self._taken * self._target // self._source)
        left = whole - self._given
        rest = self._collect(frames)[:, :left]
        assert rest.shape[1] == left
        return rest

    def _frame(self, samples_CN: np.ndarray) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples_CN), format="fltp", layout=self._layout
        )
        frame.sample_rate = self._source
        frame.time_base = Fraction(1, self._source)
        return frame

    def _collect(self, frames: list[av.AudioFrame]) -> np.ndarray:
        blocks = [np.zeros((self._channels, 0), np.float32)]
        blocks += [np.asarray(frame.to_ndarray(), np.float32) for frame in frames]
        samples_CN = np.concatenate(blocks, axis=1)
        self._given += samples_CN.shape[1]
        return samples_CN


class AudioReader:
    """A sound file, or the first sound track of a video file, as a stream of 16 kHz mono blocks.

    Channels are averaged, then resampled: N samples at rate r become ceil(N * 16000 / r). Memory
    does not grow with the file's length. Read once, as a context manager:

        with AudioReader("speech.mp3") as reader:
            for block_N in reader:
                ...

    Attributes:
        path: The file.
        source_rate: Samples per second in the file.
        channels: Channels in the file.
        codec: FFmpeg's name of the codec.
        declared_samples: Length by the header, per channel at `source_rate`; None if not declared.
        warnings: One line each, complete after the last block.
    """

    def __init__(self, path: Path | str, *, block: int = SAMPLE_RATE) -> None:
        """Open the file and decode its first samples.

        Args:
            path: The file.
            block: Samples per block; the last one may be shorter.

        Raises:
            UserError: See `SoundDecoder`.
        """
        self._decoder = SoundDecoder(path)
        self._block = block
        self.path = self._decoder.path
        self.source_rate = self._decoder.rate
        self.channels = self._decoder.channels
        self.codec = self._decoder.codec
        self.declared_samples = self._decoder.declared_samples
        self.warnings = self._decoder.warnings

    @property
    def decoded_samples(self) -> int:
        """Samples per channel at `source_rate` decoded so far."""
        return self._decoder.decoded_samples

    @property
    def declared_seconds(self) -> float | None:
        """Length by the header in seconds; None if not declared."""
        return None if self.declared_samples is None else self.declared_samples / self.source_rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield float32 [block] (the last one [<= block]), full scale +-1.

        Raises:
            UserError: See `SoundDecoder`.
        """
        resampler = Resampler(self.source_rate, SAMPLE_RATE, channels=1)
        waiting_N = np.zeros(0, np.float32)
        for samples_CN in self._decoder:
            mono_1N = samples_CN.mean(axis=0, keepdims=True, dtype=np.float32)
            waiting_N = np.concatenate([waiting_N, resampler.push(mono_1N)[0]])
            while len(waiting_N) >= self._block:
                yield waiting_N[: self._block]
                waiting_N = waiting_N[self._block :]
        waiting_N = np.concatenate([waiting_N, resampler.finish()[0]])
        for start in range(0, len(waiting_N), self._block):
            yield waiting_N[start : start + self._block]

    def close(self) -> None:
        """Close the file."""
        self._decoder.close()

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def declared_wav_samples(file: BinaryIO) -> int | None:
    """Samples per channel that the header of a WAV file (RIFF or RF64) declares.

    Source: Microsoft "Multimedia Programming Interface 1.0" (RIFF), EBU Tech 3306 (RF64).

    Args:
        file: The file, at its start; any contents.

    Returns:
        The number, or None where the header has none: a streamed file (data size 0 or a
        placeholder near 2 or 4 GiB), a compressed format, not a WAV file.
    """
    riff = file.read(12)
    if riff[:4] not in (b"RIFF", b"RF64") or riff[8:] != b"WAVE":
        return None
    wide_size: int | None = None
    block_bytes = 0
    while len(header := file.read(8)) == 8:
        name, size = header[:4], int.from_bytes(header[4:], "little")
        if name == b"data":
            if riff[:4] == b"RF64" and wide_size is not None:
                size = wide_size
            elif size == 0 or size >= _STREAMED_BYTES:
                return None
            return size // block_bytes if block_bytes else None
        body_start = file.tell()
        if name == b"fmt ":
            tag, _, _, _, align = struct.unpack("<HHIIH", file.read(14).ljust(14, b"\0"))
            block_bytes = align if tag in _PCM_TAGS else 0
        elif name == b"ds64":
            wide_size = int.from_bytes(file.read(16)[8:], "little")
        file.seek(body_start + size + size % 2)
    return None


def _to_float(frame: av.AudioFrame) -> np.ndarray:
    """Samples of a frame of any sample format as float32 [channels, n], full scale +-1."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    offset = half if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - offset) / half).astype(np.float32)


def _reason(error: Exception) -> str:
    """FFmpeg's own words without number and file name."""
    return str(getattr(error, "strerror", None) or error).lower()
