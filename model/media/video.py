"""Frames out: fragmented MP4 with sound, or raw .npy, written as they come, with bounded memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import PartFile, check_output, output_error

from .audio import SAMPLE_RATE
from .resample import Resampler
from .sound_decoder import SoundDecoder

SUFFIXES = (".mp4", ".npy")
"""Endings that `open_writer` understands."""

_CRF = 18
"""x264's constant quality; 18 is close to visually lossless."""
_PRESET = "veryfast"
_AAC_RATES = (32000, 44100, 48000)
"""Kept as they are; others become the last. An AAC frame of 1024 samples is the grain of the sound
track's length: at these rates it is shorter than a video frame, at 16 kHz it would not be."""
_AAC_BITS_PER_CHANNEL = 96_000
_BT709 = 1
"""Code of matrix, primaries and transfer alike in ITU-T H.273."""
_MAX_FPS = 1000
_NPY_HEADER_BYTES = 128


class FrameWriter(ABC):
    """A file that grows frame by frame and gets its name only when it is complete.

    It is written as ``<name>.part``. As a context manager it is finished, and so kept, at the end
    of the block and on Ctrl-C (what was written is playable), and removed on any other exception.

    Attributes:
        path: The file to be.
        frames: Frames written so far.
    """

    def __init__(self, path: Path | str, height: int, width: int, suffix: str) -> None:
        """Check the size and the place, and make the ``.part`` file.

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
        self._size = (height, width, 3)
        self._file = PartFile(self.path)
        self._resources = ExitStack()
        self._open = True

    def write(self, frames_NHWC: np.ndarray) -> None:
        """Append frames; on failure the file is given up and removed.

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
        except Exception as error:  # not Ctrl-C: then what was written is to be kept
            raise self._given_up(error) from None

    def write_sound(self, samples_N: np.ndarray) -> None:  # noqa: B027 (most formats have none)
        """Append live sound; a writer without live sound ignores it.

        Args:
            samples_N: Float32 [n], mono, 16 kHz, full scale +-1. What lies beyond the frames
                written so far waits for them; what still waits at `close` is cut.
        """

    def close(self) -> None:
        """Finish the file and give it its name; without a single frame, leave nothing.

        Raises:
            UserError: The disk is full; the file is removed.
        """
        if not self._open:
            return
        if not self.frames:
            self.abort()
            return
        try:
            self._finish()
            self._resources.close()
            self._file.commit()
        except BaseException as error:
            raise self._given_up(error) from None
        self._open = False

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
        """Finish the file at the end of the block and on Ctrl-C; else remove it."""
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.abort()

    def _given_up(self, error: BaseException) -> BaseException:
        """Remove what was written; return the error to raise."""
        self.abort()
        return output_error(self.path, error) if isinstance(error, OSError) else error

    @abstractmethod
    def _put(self, frame_HWC: np.ndarray) -> None:
        """Write frame number `frames`, uint8 [height, width, 3], contiguous."""

    def _keep_up(self) -> None:  # noqa: B027 (only a sound track has to)
        """Bring what goes beside the frames up to frame number `frames`."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is outstanding."""


class VideoWriter(FrameWriter):
    """H.264 and AAC in fragmented MP4: playable but for its last seconds even when killed."""

    def __init__(
        self,
        path: Path | str,
        height: int,
        width: int,
        fps: float | Fraction = 25,
        sound: Path | str | None = None,
        *,
        live_sound: bool = False,
        track: int | None = None,
    ) -> None:
        """Open the file and its sound.

        Args:
            path: The file, ``*.mp4``.
            height: Rows of a frame, even.
            width: Columns of a frame, even.
            fps: Frames per second; a float is taken as the nearest fraction of small terms.
            sound: A sound file, or a video file with sound. It is decoded beside the frames at its
                own rate (if that is 32, 44.1 or 48 kHz, else at 48), more than two channels are
                mixed to stereo, and it is cut at the end of the video; sound that is shorter is
                not prolonged.
            live_sound: Make a sound track for `write_sound` instead.
            track: Which sound track of the file, counted from 1; see `SoundDecoder`.

        Raises:
            UserError: The file cannot be written there, or the sound cannot be read.
        """
        self._live = live_sound
        self._fps = Fraction(fps).limit_denominator(1001) if 0 < fps < _MAX_FPS else Fraction(0)
        if not self._fps:
            raise UserError(f"fps {fps}: must be above 0 and below {_MAX_FPS}; use 25, for example")
        if height % 2 or width % 2:
            raise ValueError(f"frame size {height}x{width}: MP4 needs even numbers")
        if sound is not None and live_sound:
            raise ValueError("sound and live_sound exclude each other")
        super().__init__(path, height, width, ".mp4")
        try:
            # Through a Python file: FFmpeg's own swallows the error of a last write that fails.
            # The moov box waits for the first fragment: only then does it hold the edit list
            # that tells players to skip the AAC encoder's delay, so that sound starts exactly.
            self._container = av.open(
                self._resources.enter_context(self._file.part.open("wb")),
                mode="w",
                format="mp4",
                options={"movflags": "frag_keyframe+delay_moov+default_base_moof"},
            )
            self._resources.callback(self._container.close)
            self._video = _add_video(self._container, height, width, self._fps)
            self._sound: _SoundTrack | None = None
            if live_sound:
                self._sound = _SoundTrack(self._container, SAMPLE_RATE, 1)
            elif sound is not None:
                decoder = SoundDecoder(sound, rates=_AAC_RATES, channels=2, track=track)
                self._resources.callback(decoder.close)
                self._sound = _SoundTrack(
                    self._container, decoder.rate, decoder.channels, iter(decoder)
                )
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
            raise self._given_up(error) from None

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


class NpyWriter(FrameWriter):
    """Raw frames as one uint8 array [T, height, width, 3] in NumPy's .npy format, version 1.0."""

    def __init__(self, path: Path | str, height: int, width: int) -> None:
        """Open the file, ``*.npy``.

        Raises:
            UserError: The file cannot be written there.
        """
        super().__init__(path, height, width, ".npy")
        try:
            self._raw = self._resources.enter_context(self._file.part.open("wb"))
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
        # Ctrl-C may have left a piece of one more frame.
        self._raw.truncate(_NPY_HEADER_BYTES + self.frames * int(np.prod(self._size)))
        self._raw.seek(0)
        self._raw.write(self._header())
        self._raw.close()


def open_writer(
    path: Path | str,
    height: int,
    width: int,
    fps: float | Fraction = 25,
    sound: Path | str | None = None,
    *,
    live_sound: bool = False,
    track: int | None = None,
) -> FrameWriter:
    """Open the writer for the path's ending: .mp4 (`VideoWriter`) or .npy (`NpyWriter`, silent).

    Raises:
        UserError: Another ending, or the file cannot be written there.
    """
    if check_output(path, SUFFIXES).suffix.lower() == ".npy":
        return NpyWriter(path, height, width)
    return VideoWriter(path, height, width, fps, sound, live_sound=live_sound, track=track)
