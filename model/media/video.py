"""Writes MP4 video with sound as the frames come, with bounded memory."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from livetalk_kernels.outputs import check_output

from .audio import SAMPLE_RATE
from .fragments import cut_to_whole_fragments
from .frame_rate import frame_rate
from .frames import FrameWriter, NpyWriter
from .resample import Resampler
from .sound_decoder import SoundDecoder

SUFFIXES = (".mp4", ".npy")
"""Suffixes that `open_writer` supports."""

_CRF = 18
"""x264's constant quality; 18 is close to visually lossless."""
_PRESET = "veryfast"
_AAC_RATES = (32000, 44100, 48000)
"""Kept unchanged; others become the last. An AAC frame of 1024 samples is the granularity of the
sound track's length: at these rates it is shorter than a video frame, at 16 kHz it would not be."""
_AAC_BITS_PER_CHANNEL = 96_000
_MOVFLAGS = ("frag_keyframe", "delay_moov", "default_base_moof", "hybrid_fragmented")
_BT709 = 1
"""Code of matrix, primaries and transfer alike in ITU-T H.273."""


class VideoWriter(FrameWriter):
    """H.264 and AAC in MP4, indexed once complete, playable as it grows.

    While being written, the file is fragmented: whenever the process is killed, all but the last
    second plays. At the end FFmpeg appends the index of a regular file, and turns everything before
    it into that file's data by overwriting the header of one box.
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
        track: int | None = None,
    ) -> None:
        """Open the file and its sound.

        Args:
            path: The file, ``*.mp4``.
            height: Rows of a frame, even.
            width: Columns of a frame, even.
            fps: Frames per second, see `frame_rate`.
            sound: A sound file, or a video file with sound. It is decoded along with the frames at
                its own rate (if that is 32, 44.1 or 48 kHz, else at 48), more than two channels are
                mixed to stereo, and it is cut at the end of the video; shorter sound is not
                extended.
            live_sound: Create a sound track for `write_sound` instead.
            track: Which sound track of the file, counted from 1; see `SoundDecoder`.

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
            # The moov box waits for the first fragment: only then does it contain the edit list
            # that makes players skip the AAC encoder's delay, so that sound starts exactly.
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
                decoder = SoundDecoder(sound, rates=_AAC_RATES, channels=2, track=track)
                self._resources.callback(decoder.close)
                self._sound = _SoundTrack(
                    self._container, decoder.rate, decoder.channels, iter(decoder)
                )
        except BaseException as error:  # including Ctrl-C: there is no frame to keep
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
            container: Container to add it to.
            source_rate: Samples per second of the input; see `_AAC_RATES` for the output.
            channels: 1 or 2.
            blocks: Float32 [channels, n], pulled when more sound is needed.
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
        """Encode available sound up to this time."""
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
    """Open the writer for the path's suffix: .mp4 (`VideoWriter`) or .npy (`NpyWriter`, silent).

    Raises:
        UserError: Another suffix, or the file cannot be written there.
    """
    if check_output(path, SUFFIXES).suffix.lower() == ".npy":
        return NpyWriter(path, height, width)
    return VideoWriter(path, height, width, fps, sound, live_sound=live_sound, track=track)
