"""Frames out: MP4 with sound, or raw .npy, written as they come, with bounded memory."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import PartFile, check_output, output_error

from .audio import SAMPLE_RATE, Resampler, SoundDecoder
from .fragments import cut_to_whole_fragments
from .frame_rate import frame_rate

SUFFIXES = (".mp4", ".npy")
"""Endings that `open_writer` understands."""

_CRF = 18
"""x264's constant quality; 18 is close to visually lossless."""
_PRESET = "veryfast"
_AAC_RATES = (32000, 44100, 48000)
"""Kept as they are; others become the last. An AAC frame of 1024 samples is the grain of the sound
track's length: at these rates it is shorter than a video frame, at 16 kHz it would not be."""
_AAC_BITS_PER_CHANNEL = 96_000
_MOVFLAGS = ("frag_keyframe", "delay_moov", "default_base_moof", "hybrid_fragmented")
_BT709 = 1
"""Code of matrix, primaries and transfer alike in ITU-T H.273."""
_MAX_CHANNELS = 2
_NPY_HEADER_BYTES = 128


class _WholeWrites(io.FileIO):
    """A new file to which a write arrives whole or fails, and after a failure none arrives.

    FFmpeg does not notice a write that the disk has cut short, and its own files swallow the error
    of a last write that fails.

    Attributes:
        failure: What every write fails with, if any.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.failure: BaseException | None = None

    def write(self, data: Any, /) -> int:
        if self.failure is not None:
            raise self.failure
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except BaseException as error:  # Ctrl-C as well: a piece of it may have arrived
            self.failure = error
            raise
        return count


class FrameWriter(ABC):
    """A file that grows frame by frame and gets its name at the end.

    It is written as a `PartFile`. What is finished is kept: as a context manager the file is
    finished at the end of the block, whatever ends it, and where the disk takes no more, it is cut
    back to what plays. Without a single frame nothing is left.

    Attributes:
        path: The file to be.
        frames: Frames written so far; at the end those that the file holds.
        warnings: What is wrong with the file at the end, one line each.
    """

    def __init__(self, path: Path | str, height: int, width: int, suffix: str) -> None:
        """Check the size and the place, and make the part file.

        Args:
            path: The file; one of that name is replaced when this one is complete.
            height: Rows of a frame.
            width: Columns of a frame.
            suffix: The ending that this writer understands.

        Raises:
            UserError: The file cannot be written there.
        """
        if height < 1 or width < 1:
            raise ValueError(f"frame size {height}x{width}: both must be positive")
        self.path = check_output(path, (suffix,))
        self.frames = 0
        self.warnings: list[str] = []
        self._size = (height, width, 3)
        self._file = PartFile(self.path)
        self._resources = ExitStack()
        self._open = True
        try:
            self._raw = self._resources.enter_context(_WholeWrites(self._file.part))
        except BaseException as error:
            raise self._given_up(error) from None

    def write(self, frames_NHWC: np.ndarray) -> None:
        """Append frames; after a failure the file is finished with those written before.

        Args:
            frames_NHWC: Uint8 [n, height, width, 3], RGB, an array (or a tensor on the CPU).

        Raises:
            UserError: The disk is full, or the sound cannot be read any further.
        """
        frames_NHWC = np.asarray(frames_NHWC)
        if frames_NHWC.dtype != np.uint8 or frames_NHWC.shape[1:] != self._size:
            raise ValueError(
                f"frames must be uint8 [n, {', '.join(map(str, self._size))}], "
                f"not {frames_NHWC.dtype} {list(frames_NHWC.shape)}"
            )
        assert self._open, "the writer is closed"
        try:
            for frame_HWC in frames_NHWC:
                self._put(np.ascontiguousarray(frame_HWC))
                self.frames += 1
                self._keep_up()
        except Exception as error:  # not Ctrl-C: whoever catches that closes the writer
            raise self._ended_by(error) from None

    def write_sound(self, samples_N: np.ndarray) -> None:  # noqa: B027 (most formats have none)
        """Append live sound; a writer without live sound ignores it.

        Args:
            samples_N: Float32 [n], mono, 16 kHz, full scale +-1. What lies beyond the frames
                written so far waits for them; what still waits at `close` is cut.
        """

    def close(self) -> None:
        """Finish the file and give it its name; without a single frame, leave nothing.

        Raises:
            UserError: The disk is full; the message says how many frames are kept.
        """
        if not self._open:
            return
        if not self.frames:
            self.abort()
            return
        frames = self.frames
        try:
            self._finish()
            self._resources.close()
        except BaseException as error:  # Ctrl-C as well
            failure = self._cut_short(error)
            if self.frames < frames or not isinstance(self._raw.failure, OSError):
                raise failure from None
            return  # no frame is lost
        self._commit()

    def abort(self) -> None:
        """Remove what was written; harmless after `close`."""
        if not self._open:
            return
        self._open = False
        with suppress(Exception):  # what cannot be flushed is about to go
            self._resources.close()
        self._file.discard()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, whatever ends the block."""
        self.close()

    def _given_up(self, error: BaseException) -> BaseException:
        """Remove what was written; return the error to raise."""
        self.abort()
        return output_error(self.path, error) if isinstance(error, OSError) else error

    def _ended_by(self, error: Exception) -> BaseException:
        """Finish the file after a failed write; return the error to raise."""
        if self._raw.failure is not None:
            return self._cut_short(error)
        try:
            self.close()
        except BaseException as failure:  # the disk is full as well; it says what is kept
            return failure
        return error

    def _cut_short(self, error: BaseException) -> BaseException:
        """Keep what plays of a file that cannot be finished; return the error to raise."""
        error = self._raw.failure = self._raw.failure or error  # nothing more is to arrive
        with suppress(Exception):  # the same failure again
            self._resources.close()
        try:
            self.frames = self.frames and self._salvage()
            if not self.frames:
                return self._given_up(error)
            self._commit()
        except (OSError, UserError) as failure:
            self._open = False
            return failure if isinstance(failure, UserError) else self._left(failure)
        if isinstance(error, OSError):
            kept = f"the first {self.frames} frames are kept"
            return UserError(f"{output_error(self.path, error)}; {kept}")
        return error

    def _commit(self) -> None:
        """Give the file its name.

        Raises:
            UserError: It cannot have it; the message says where the frames are.
        """
        self._open = False
        try:
            self._file.commit()
        except OSError as error:
            raise self._left(error) from None

    def _left(self, error: OSError) -> UserError:
        """The error to raise where the part file has to stay what it is."""
        part = self._file.part
        return UserError(f"{output_error(self.path, error)}; what was written is left in {part}")

    @abstractmethod
    def _put(self, frame_HWC: np.ndarray) -> None:
        """Write frame number `frames`, uint8 [height, width, 3], contiguous."""

    def _keep_up(self) -> None:  # noqa: B027 (only a sound track has to)
        """Bring what goes beside the frames up to frame number `frames`."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is outstanding."""

    @abstractmethod
    def _salvage(self) -> int:
        """Cut the part file, whose writing has failed, back to what plays.

        Returns:
            Frames that are left.

        Raises:
            OSError: It cannot be cut.
        """


class VideoWriter(FrameWriter):
    """H.264 and AAC in MP4, indexed once it is complete, playable as it grows.

    While it is written, the file is fragmented: whenever the process is killed, all but the last
    second plays. At the end FFmpeg appends the index of a normal file, and turns all that comes
    before it into that file's data by overwriting the header of one box.
    """

    def __init__(
        self,
        path: Path | str,
        height: int,
        width: int,
        fps: float | Fraction = 25,
        sound: Path | str | None = None,
        *,
        live_sound: bool = False,
    ) -> None:
        """Open the file and its sound.

        Args:
            path: The file, ``*.mp4``.
            height: Rows of a frame, even.
            width: Columns of a frame, even.
            fps: Frames per second, see `frame_rate`.
            sound: A sound file, or a video file with sound. It is decoded beside the frames at its
                own rate (if that is 32, 44.1 or 48 kHz, else at 48), more than two channels are
                averaged to one, and it is cut at the end of the video; sound that is shorter is
                not prolonged.
            live_sound: Make a sound track for `write_sound` instead.

        Raises:
            UserError: The file cannot be written there, or the sound cannot be read.
        """
        self._live = live_sound
        self._fps = frame_rate(fps)
        if height % 2 or width % 2:
            raise ValueError(f"frame size {height}x{width}: MP4 needs even numbers")
        if sound is not None and live_sound:
            raise ValueError("sound and live_sound exclude each other")
        super().__init__(path, height, width, ".mp4")
        try:
            # The moov box waits for the first fragment: only then does it hold the edit list
            # that tells players to skip the AAC encoder's delay, so that sound starts exactly.
            self._container = av.open(
                self._raw,
                mode="w",
                format="mp4",
                options={"movflags": "+".join(_MOVFLAGS)},
            )
            self._resources.callback(self._container.close)
            self._video = _add_video(self._container, height, width, self._fps)
            self._sound: _SoundTrack | None = None
            if live_sound:
                self._sound = _SoundTrack(self._container, SAMPLE_RATE, 1)
            elif sound is not None:
                decoder = SoundDecoder(sound)
                self._resources.callback(decoder.close)
                self._sound = _file_track(self._container, decoder)
        except BaseException as error:  # Ctrl-C as well: there is no frame to keep
            raise self._given_up(error) from None

    def write_sound(self, samples_N: np.ndarray) -> None:
        """Append live sound; see `FrameWriter.write_sound`."""
        if self._sound is None or not self._live:
            return
        self._sound.push(np.asarray(samples_N, np.float32)[None])
        try:
            self._keep_up()
        except Exception as error:
            raise self._ended_by(error) from None

    def _put(self, frame_HWC: np.ndarray) -> None:
        frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = self.frames, 1 / self._fps
        self._container.mux(self._video.encode(frame))

    def _keep_up(self) -> None:
        if self._sound is not None:
            self._sound.advance(self.frames / self._fps)

    def _finish(self) -> None:
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.finish(self.frames / self._fps)
        self._container.close()

    def _salvage(self) -> int:
        frames = cut_to_whole_fragments(self._file.part)
        if frames:
            self.warnings.append(
                f"{self.path}: has no index, since its end could not be written: it plays, but may "
                "show no length; 'ffmpeg -i OLD.mp4 -c copy NEW.mp4' makes a copy with one"
            )
        return frames


def _add_video(
    container: OutputContainer, height: int, width: int, fps: Fraction
) -> av.VideoStream:
    """Add an H.264 stream: one keyframe, and so one fragment, per second; no B frames."""
    options = {"crf": str(_CRF), "preset": _PRESET, "bf": "0", "g": str(max(1, round(fps)))}
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    codec.time_base = 1 / fps
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = ColorRange.MPEG
    return stream


class _SoundTrack:
    """An AAC stream that follows the frames."""

    def __init__(
        self,
        container: OutputContainer,
        source_rate: int,
        channels: int,
        blocks: Iterable[np.ndarray] = (),
    ) -> None:
        """Add the stream.

        Args:
            container: Where it goes.
            source_rate: Samples per second of what comes; see `_AAC_RATES` for what goes out.
            channels: 1 or 2.
            blocks: Float32 [channels, n], asked for when more sound is needed.
        """
        self._rate = source_rate if source_rate in _AAC_RATES else _AAC_RATES[-1]
        self._resampler = Resampler(source_rate, self._rate, channels=channels)
        self._blocks = iter(blocks)
        self._waiting_CN = np.zeros((channels, 0), np.float32)
        self._sent = 0
        self._container = container
        self._layout = "mono" if channels == 1 else "stereo"
        self._stream = container.add_stream("aac", rate=self._rate, layout=self._layout)
        self._stream.codec_context.bit_rate = _AAC_BITS_PER_CHANNEL * channels

    def push(self, samples_CN: np.ndarray) -> None:
        """Append float32 [channels, n] at the source's rate."""
        self._append(self._resampler.push(samples_CN))

    def advance(self, seconds: Fraction) -> None:
        """Encode what there is up to this time."""
        wanted = round(seconds * self._rate) - self._sent
        while self._waiting_CN.shape[1] < wanted:
            block_CN = next(self._blocks, None)
            if block_CN is None:
                break
            self.push(block_CN)
        samples_CN = np.ascontiguousarray(self._waiting_CN[:, :wanted])
        if not samples_CN.size:
            return
        self._waiting_CN = self._waiting_CN[:, wanted:]
        frame = av.AudioFrame.from_ndarray(samples_CN, format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
        frame.pts = self._sent
        self._sent += samples_CN.shape[1]
        self._container.mux(self._stream.encode(frame))

    def finish(self, seconds: Fraction) -> None:
        """Encode the rest up to this time."""
        self.advance(seconds)
        self._append(self._resampler.finish())
        self.advance(seconds)
        self._container.mux(self._stream.encode(None))

    def _append(self, samples_CN: np.ndarray) -> None:
        self._waiting_CN = np.concatenate([self._waiting_CN, samples_CN], axis=1)


def _file_track(container: OutputContainer, decoder: SoundDecoder) -> _SoundTrack:
    """Add a track for the sound of a file: mono, stereo, or the mean of more channels."""
    blocks: Iterator[np.ndarray] = iter(decoder)
    if decoder.channels <= _MAX_CHANNELS:
        return _SoundTrack(container, decoder.rate, decoder.channels, blocks)
    means = (samples_CN.mean(axis=0, keepdims=True, dtype=np.float32) for samples_CN in blocks)
    return _SoundTrack(container, decoder.rate, 1, means)


class NpyWriter(FrameWriter):
    """Raw frames as one uint8 array [T, height, width, 3] in NumPy's .npy format, version 1.0."""

    def __init__(self, path: Path | str, height: int, width: int) -> None:
        """Open the file, ``*.npy``.

        Raises:
            UserError: The file cannot be written there.
        """
        super().__init__(path, height, width, ".npy")
        try:
            self._raw.write(self._header())
        except BaseException as error:
            raise self._given_up(error) from None

    def _header(self) -> bytes:
        """The header for `frames` frames; its length never changes, so it can be rewritten."""
        shape = (self.frames, *self._size)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
        start = b"\x93NUMPY\x01\x00"
        room = _NPY_HEADER_BYTES - len(start) - 2
        return start + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n"

    def _put(self, frame_HWC: np.ndarray) -> None:
        self._raw.write(frame_HWC.data)

    def _finish(self) -> None:
        self._seal(self._raw)

    def _salvage(self) -> int:
        with self._file.part.open("r+b") as file:
            self._seal(file)
        return self.frames

    def _seal(self, file: BinaryIO | io.FileIO) -> None:
        """Cut off a piece of one more frame, which a failure leaves, and write the header."""
        file.truncate(_NPY_HEADER_BYTES + self.frames * int(np.prod(self._size)))
        file.seek(0)
        file.write(self._header())


def open_writer(
    path: Path | str,
    height: int,
    width: int,
    fps: float | Fraction = 25,
    sound: Path | str | None = None,
    *,
    live_sound: bool = False,
) -> FrameWriter:
    """Open the writer for the path's ending: .mp4 (`VideoWriter`) or .npy (`NpyWriter`, silent).

    Raises:
        UserError: Another ending, or the file cannot be written there.
    """
    if check_output(path, SUFFIXES).suffix.lower() == ".npy":
        return NpyWriter(path, height, width)
    return VideoWriter(path, height, width, fps, sound, live_sound=live_sound)
