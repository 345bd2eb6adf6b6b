"""Decodes the sound of any file with FFmpeg: one track, its time stamps, layouts and range."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_input

from .containers import Track, candidates, list_tracks, open_container, reason
from .mixing import full_scale, largest_sample, layout_name
from .pieces import Format, Piece
from .resample import Resampler
from .stamps import Stamps
from .wav_header import declared_wav_samples

_RATES = range(4000, 768_001)
"""Sample rates of sound; anything else indicates a damaged header."""
_NO_LENGTH = ("mp3", "aac", "ac3", "eac3", "dts", "truehd", "mlp", "loas", "avi", "rm")
"""Containers without a length field, for which FFmpeg estimates from the bit rate; and those whose
field is arbitrary if the writing program could not seek back to it."""
_BROADCAST = ("mpegts", "mpeg")
"""Containers whose time stamps may restart anywhere."""
_EXACT_END = "mov,mp4,m4a,3gp,3g2,mj2"
"""FFmpeg's name of containers whose length is exact to _ROUNDED, and cuts a codec's last frame."""
_ROUNDED = Fraction(1, 1000)
"""Seconds by which that length may be rounded down."""
_SHORTFALL = 0.5
"""Seconds by which a compressed file may fall short of its declared length without a warning."""
_AHEAD_VALUES = 1 << 20
"""Maximum values, along with _AHEAD seconds, to decode ahead to determine scale and phase."""
_AHEAD = 10
_AUDIBLE_EXCESS = 10 ** (1 / 20)
"""Peak from which clipping is reported; lossy codecs routinely exceed full scale by up to 1 dB."""
_RESTARTS = 16
"""How often reading continues after tracks that appear midway."""
_KEPT_CHANGES = 10
"""Number of format changes that are reported individually."""


class SoundDecoder:
    """Decodes one sound track of a file to mono or stereo at one rate, with bounded memory.

    Gaps in the time stamps, including at the start, become silence (`Stamps`); rate, layout and
    sample format may change midway; three or more channels are mixed as described in `mix_matrix`,
    and peaks above full scale are clipped. Float samples whose first seconds evidently have the
    scale of 16-bit numbers are divided by 32768.

    The constructor opens the file and decodes its first seconds, so that a file that is unusable
    from its start is rejected at once.

    Attributes:
        path: The file.
        track: The decoded track.
        tracks: All sound tracks of the file.
        rate: Samples per second of the output.
        channels: Channels of the output.
        source_rate: Samples per second in the file, at its start.
        source_channels: Channels in the file, at its start.
        layout: Name of the channel layout.
        codec: FFmpeg's name of the codec.
        declared_samples: Samples per channel at `source_rate` from the header, if it has a length
            field, including silence at the start.
        stamps: Where silence was inserted.
        notes: Decisions made; complete once the last block has been yielded.
        warnings: Problems found; complete once the last block has been yielded.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        rates: tuple[int, ...],
        channels: int,
        track: int | None = None,
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            rates: Sample rates to choose from: the file's own if included, else the last.
            channels: 1, or 2 for as many as the file has, up to 2.
            track: Which sound track, counted from 1; None for FFmpeg's choice among those that
                can be decoded.

        Raises:
            UserError: Missing, a folder, empty, unreadable, not a sound file, without samples or
                without this track; or its beginning is not sound.
        """
        self.path = check_input(path, "audio")
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._damaged = self._values = self._cut = 0
        self._position = Fraction(0)
        self._yielded = Fraction(0)
        self._peak = 0.0
        self._cancelling = False
        self._refusal: UserError | None = None
        self._container = open_container(self.path)
        try:
            first = self._open_track(track)
            self.source_rate, self.codec = first.sample_rate, self._stream.codec_context.name
            if self.source_rate not in _RATES:
                raise UserError(
                    f"{self.path}: its header gives {self.source_rate} samples per second (usable: "
                    f"{_RATES.start} to {_RATES.stop - 1}); record or export it again"
                )
            self.source_channels = first.layout.nb_channels
            self.layout = layout_name(first)
            self.channels = min(channels, self.source_channels)
            self.rate = self.source_rate if self.source_rate in rates else rates[-1]
            start = self._container.start_time
            self.stamps = Stamps(
                None if start is None else Fraction(start, av.time_base),
                discontinuous=self._container.format.name in _BROADCAST,
            )
            self.declared_samples = self._declared()
            self._pieces = self._checked(chain([first], self._frames))
            self._ahead: deque[Piece] = deque()
            self._look_ahead()
        except BaseException:
            self.close()
            raise

    @property
    def decoded_samples(self) -> int:
        """Samples per channel at `source_rate` yielded so far, including silence."""
        return round(self._yielded * self.source_rate)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the sound once, as float32 [channels, n] at `rate`, full scale +-1.

        Raises:
            UserError: The samples include NaN, Inf or values far beyond full scale.
        """
        first = self._ahead[0].format
        first.mixer.listen(piece.samples for piece in self._ahead if piece.format is first)
        resampler, format_ = Resampler(first.rate, self.rate, channels=self.channels), first
        while (piece := self._next()) is not None:
            self._check_range(piece)
            if piece.format is not format_:
                yield resampler.finish()
                format_ = piece.format
                resampler = Resampler(format_.rate, self.rate, channels=self.channels)
            if piece.silence:
                yield from resampler.push_silence(piece.silence)
            yield resampler.push(self._mixed(piece))
            self._yielded = piece.end
        yield resampler.finish()
        self._report_problems()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def report(self) -> dict[str, Any]:
        """Report decisions: the track, its layout, and the silence inserted into gaps."""
        return {
            "track": {"number": self.track.number, "of": len(self.tracks), "codec": self.codec},
            "layout": {"name": self.layout, "channels": self.source_channels},
            "gaps": {
                "count": self.stamps.count,
                "seconds": float(self.stamps.silence),
                "first": [vars(gap) for gap in self.stamps.gaps],
            },
        }

    def _open_track(self, number: int | None) -> av.AudioFrame:
        """Choose the track; return its first frame."""
        self.tracks: tuple[Track, ...] = list_tracks(self._container)
        for attempt, track in enumerate(candidates(self._container, self.path, number)):
            if attempt:
                self._container.close()
                self._container = open_container(self.path)
                self.warnings.clear()
                self._damaged = 0
            self.track = track
            self._stream = self._container.streams.audio[track.number - 1]
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is not None:
                if len(self.tracks) > 1:
                    there = "; ".join(map(str, self.tracks))
                    self.notes.append(
                        f"{self.path}: sound track {track.number} of {len(self.tracks)} is heard "
                        f"({there}); --track chooses another"
                    )
                return first
        raise UserError(
            f"{self.path}: holds no sound samples (empty or cut off after its header); "
            "record or export it again"
        )

    def _decode(self) -> Iterator[av.AudioFrame]:
        """Yield non-empty frames; count and skip damaged packets."""
        packets = self._container.demux(self._stream)
        restarts = 0
        while True:
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV 18 fails on tracks that appear midway, at their end
                restarts += 1
                if restarts > _RESTARTS:
                    return
                packets = self._container.demux(self._stream)
                continue
            except av.error.FFmpegError as error:
                self.warnings.append(
                    f"{self.path}: damaged ({reason(error)}) after {self._place()}; "
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

    def _checked(self, frames: Iterator[av.AudioFrame]) -> Iterator[Piece]:
        """Position the frames in time, and reject samples that are not numbers."""
        format_: Format | None = None
        for frame, last in _marked(frames):
            if format_ is None or not format_.describes(frame):
                if frame.sample_rate not in _RATES or not frame.layout.nb_channels:
                    self._damaged += 1
                    continue
                format_ = Format(frame, self.channels)
                self._note(format_)
            time_base = frame.time_base
            stamp = None if frame.pts is None or time_base is None else frame.pts * time_base
            silence = self.stamps.silence_before(stamp, self._position)
            count = round(silence * format_.rate)
            self._position += Fraction(count, format_.rate)
            samples_CN = format_.to_float(frame)
            if last and self._container.format.name == _EXACT_END:
                samples_CN = self._cut_padding(samples_CN, format_.rate)
            finite_N = np.isfinite(samples_CN).all(axis=0)
            if not finite_N.all():
                place = float(self._position) + int(finite_N.argmin()) / format_.rate
                raise UserError(
                    f"{self.path}: holds NaN or Inf at {place:.2f} s; repair or export it again"
                )
            piece = Piece(silence=count, start=self._position, samples=samples_CN, format=format_)
            self._position = piece.end
            yield piece

    def _cut_padding(self, samples_CN: np.ndarray, rate: int) -> np.ndarray:
        """Cut the padding of a codec's last frame beyond the declared end."""
        if self.declared_samples is None:
            return samples_CN
        end = Fraction(self.declared_samples, self.source_rate) + _ROUNDED
        kept = round((end - self._position) * rate)
        return samples_CN[:, :kept] if 0 < kept < samples_CN.shape[1] else samples_CN

    def _look_ahead(self) -> None:
        """Decode the first seconds and determine the scale of float samples.

        Problems in the first frame are reported now, later ones when they are reached: the sound
        before them is good.
        """
        values = 0
        try:
            for piece in self._pieces:
                self._ahead.append(piece)
                values += piece.samples.size
                if values >= _AHEAD_VALUES or self._position >= _AHEAD:
                    break
        except UserError as error:
            if not self._ahead:
                raise
            self._refusal = error
        floats = [piece for piece in self._ahead if piece.floating]
        peak = max((piece.peak for piece in floats), default=0.0)
        scale = full_scale(peak)
        self._scale = 1.0 if scale is None else scale
        if self._scale != 1:
            self.warnings.append(
                f"{self.path}: its float samples reach {peak:.0f}, so they are taken as 16-bit "
                "numbers and divided by 32768; export them with a full scale of 1"
            )
        self._check_range(self._ahead[0])

    def _next(self) -> Piece | None:
        if self._ahead:
            return self._ahead.popleft()
        if self._refusal is not None:
            raise self._refusal
        return next(self._pieces, None)

    def _check_range(self, piece: Piece) -> None:
        above = piece.first_above(largest_sample(self._scale)) if piece.floating else None
        if above is not None:
            place, size = above
            raise UserError(
                f"{self.path}: holds a sample of {size:.3g} at {place:.2f} s, where full scale is "
                f"{self._scale:.0f}; repair it, or export it again with a full scale of 1"
            )

    def _mixed(self, piece: Piece) -> np.ndarray:
        """Return samples in the output channels, within full scale."""
        samples_CN = piece.samples
        if piece.floating and self._scale != 1:
            samples_CN = samples_CN / np.float32(self._scale)
        mixer = piece.format.mixer
        samples_CN = mixer.mix(samples_CN)
        if mixer.alone and not self._cancelling:
            self._cancelling = True
            self.warnings.append(
                f"{self.path}: its channels cancel each other out at {float(piece.start):.2f} s "
                "(one is the other upside down); the mouth follows one of them; turn the phase of "
                "one channel"
            )
        peak = float(np.abs(samples_CN).max())
        self._peak = max(self._peak, peak)
        self._values += samples_CN.size
        if peak > 1:
            self._cut += int((np.abs(samples_CN) > 1).sum())
            samples_CN = samples_CN.clip(-1, 1)
        return samples_CN

    def _declared(self) -> int | None:
        """Read samples per channel from the header; FFmpeg hides a WAV's own figure."""
        name = self._container.format.name
        if name == "wav":
            with self.path.open("rb") as file:
                return declared_wav_samples(file)
        stream = self._stream
        if not stream.duration or stream.time_base is None or name in _NO_LENGTH:
            return None
        seconds = stream.duration * stream.time_base
        if stream.start_time is not None and self._container.start_time is not None:
            origin = Fraction(self._container.start_time, av.time_base)
            seconds += max(Fraction(0), stream.start_time * stream.time_base - origin)
        return round(seconds * self.source_rate)

    def _place(self) -> str:
        return f"{float(self._position):.2f} s" if self._position else "its start"

    def _note(self, format_: Format) -> None:
        note = f"{self.path}: {format_.mixer.note}"
        if format_.mixer.note and note not in self.notes:
            self.notes.append(note)
        if self._position:
            note = (
                f"{self.path}: continues as {format_.layout} with {format_.rate} samples per "
                f"second after {self._place()}"
            )
            if len(self.notes) < _KEPT_CHANGES:
                self.notes.append(note)

    def _report_problems(self) -> None:
        """Report decisions and problems, once everything has been decoded."""
        stamps = self.stamps
        if stamps.count:
            first = stamps.gaps[0]
            self.notes.append(
                f"{self.path}: {float(stamps.silence):.2f} s of silence where its time stamps "
                f"leave gaps ({stamps.count}, the first of {first.seconds:.2f} s at "
                f"{first.start:.2f} s)"
            )
        if stamps.jumps:
            self.warnings.append(
                f"{self.path}: its time stamps jump at {stamps.first_jump:.2f} s"
                f"{f' and {stamps.jumps - 1} times more' if stamps.jumps > 1 else ''}; the sound "
                "continues there without a break; if that is wrong, export it again"
            )
        if self._damaged:
            self.warnings.append(
                f"{self.path}: {self._damaged} damaged packets left out; copy or export it again"
            )
        if self._peak > _AUDIBLE_EXCESS:
            self.warnings.append(
                f"{self.path}: peaks up to {20 * np.log10(self._peak):.1f} dB above full scale are "
                f"cut ({100 * self._cut / self._values:.2g} % of the samples); export it with a "
                "lower level"
            )
        if self.declared_samples is None or stamps.jumps:
            return
        exact = self._container.format.name == "wav"
        allowed = 0 if exact else max(_SHORTFALL * self.source_rate, 0.01 * self.declared_samples)
        if self.declared_samples - self.decoded_samples > allowed:
            self.warnings.append(
                f"{self.path}: truncated: declared {self.declared_samples} samples, "
                f"decoded {self.decoded_samples}; what is missing is not heard; "
                "copy or export it again"
            )


def _marked(frames: Iterator[av.AudioFrame]) -> Iterator[tuple[av.AudioFrame, bool]]:
    """Mark the last one."""
    waiting = next(frames, None)
    while waiting is not None:
        following = next(frames, None)
        yield waiting, following is None
        waiting = following
