"""Sound as FFmpeg decodes it: layouts, time stamps, tracks, lengths, range, phase, lists."""

import json
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from media_tools import probe_video, sound_frame, write_sound, write_wav
from pyloudnorm import Meter

from livetalk_kernels.errors import UserError
from livetalk_model.media.audio import AudioReader
from livetalk_model.media.mixing import mix_matrix
from livetalk_model.media.stamps import MOST_SILENCE, Stamps
from livetalk_model.media.video import VideoWriter

RATE = 48000
Heard = tuple[np.ndarray, AudioReader]


def hear(path: Path, track: int | None = None) -> Heard:
    with AudioReader(path, track=track) as reader:
        return np.concatenate(list(reader)), reader


def voice(seconds: float = 2.5, rate: int = RATE, level: float = 0.1, seed: int = 0) -> np.ndarray:
    """Noise [n] with the spectrum of speech, roughly, in syllables."""
    draw = np.random.default_rng(seed)
    count = round(seconds * rate)
    white = np.fft.rfft(draw.standard_normal(count))
    hertz = np.fft.rfftfreq(count, 1 / rate)
    pink = np.fft.irfft(white / (1 + (hertz / 500) ** 2), count)
    shaped = pink * (1.2 + np.sin(2 * np.pi * 4 * np.arange(count) / rate))
    return (level * shaped / shaped.std()).astype(np.float32)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def encode(
    path: Path,
    pieces: Sequence[tuple[float, np.ndarray]],
    codec: str = "aac",
    rate: int = RATE,
    *,
    video: float = 0,
    step: int = 960,
) -> Path:
    """Write mono sound, each piece [n] at its time in seconds, with black frames of that length."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=25) if video else None
        if picture is not None:
            picture.width = picture.height = 64
        stream = container.add_stream(codec, rate=rate, layout="mono")
        for begin, samples_N in pieces:
            for start in range(0, len(samples_N), step):
                block = samples_N[None, start : start + step]
                stamp = round(begin * rate) + start
                container.mux(stream.encode(sound_frame(block, rate, "mono", stamp)))
        container.mux(stream.encode(None))
        if picture is not None:
            for _ in range(round(25 * video)):
                black = np.zeros((64, 64, 3), np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(black, format="rgb24")))
            container.mux(picture.encode(None))
    return path


# Layouts ----------------------------------------------------------------------------------


def loudness(samples_CN: np.ndarray, rate: int, layout: str) -> float:
    """BS.1770; the meter wants left, right, centre and the sides, without the bass."""
    order = {"5.1": [0, 1, 2, 4, 5], "7.1": [0, 1, 2, 6, 7]}.get(layout)
    return Meter(rate).integrated_loudness((samples_CN[order] if order else samples_CN).T)


def surround(layout: str) -> np.ndarray:
    """A voice in the centre, or in both of two, with something quiet of its own around it."""
    count = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}[layout]
    sound_CN = np.zeros((count, round(2.5 * RATE)), np.float32)
    around = {"5.1": (0, 1, 4, 5), "7.1": (0, 1, 6, 7)}.get(layout, ())
    for channel in around:
        sound_CN[channel] = voice(level=0.01, seed=channel + 1)
    sound_CN[[2] if around else slice(None)] = voice()
    return sound_CN


@pytest.mark.parametrize(
    ("layout", "ending"),
    [("mono", "wav"), ("stereo", "wav"), ("stereo", "m4a"), ("5.1", "wav"), ("5.1", "flac"),
     ("5.1", "m4a"), ("7.1", "wav"), ("7.1", "flac"), ("7.1", "m4a")],
)  # fmt: skip
def test_loudness_of_every_layout(tmp_path: Path, layout: str, ending: str) -> None:
    codec = {"wav": "pcm_s16le", "flac": "flac", "m4a": "aac"}[ending]
    sound_CN = surround(layout)
    source = write_sound(tmp_path / f"a.{ending}", sound_CN, RATE, codec, layout)
    wanted = loudness(sound_CN, RATE, layout)
    with VideoWriter(tmp_path / "out.mp4", 64, 64, 25, source) as writer:
        writer.write(np.zeros((62, 64, 64, 3), np.uint8))
    shown = probe_video(tmp_path / "out.mp4")
    assert shown.sound is not None and len(shown.sound) == min(len(sound_CN), 2)
    assert loudness(shown.sound, shown.sound_rate, "") == pytest.approx(wanted, abs=1)
    heard_N, reader = hear(source)
    assert reader.report()["layout"] == {"name": layout, "channels": len(sound_CN)}
    assert not reader.warnings
    assert rms(heard_N) == pytest.approx(rms(voice()), rel=0.12)  # the voice keeps its level


def test_matrices_are_swresamples() -> None:
    half = np.float32(np.sqrt(0.5))
    matrix, note = mix_matrix("5.1", 6, 1)
    assert matrix[0] == pytest.approx([half, half, 1, 0, 0.5, 0.5], abs=1e-3) and not note
    matrix, _ = mix_matrix("5.1", 6, 2)
    assert matrix[0] == pytest.approx([1, 0, half, 0, half, 0], abs=1e-3)
    assert np.array_equal(mix_matrix("stereo", 2, 1)[0], [[0.5, 0.5]])
    assert np.array_equal(mix_matrix("mono", 1, 2)[0], [[1], [1]])
    for layout, count in [("3 channels", 3), ("ambisonic 1", 4), ("9 channels", 9)]:
        matrix, note = mix_matrix(layout, count, 1)
        assert np.allclose(matrix, 1 / count) and "averaged" in note
    matrix, note = mix_matrix("6 channels", 6, 1)
    assert matrix[0, 2] == 1 and "taken for 5.1" in note


@pytest.mark.parametrize(("channels", "says"), [(3, "averaged"), (6, "taken for 5.1")])
def test_a_layout_that_is_not_named(tmp_path: Path, channels: int, says: str) -> None:
    sound_CN = np.stack([voice(1, seed=n) for n in range(channels)])
    data = (sound_CN.T * 32767).astype("<i2").tobytes()
    _, reader = hear(write_wav(tmp_path / "a.wav", data, rate=RATE, channels=channels))
    assert [says in note for note in reader.notes] == [True]


def test_peaks_of_a_mix_are_cut_and_said(tmp_path: Path) -> None:
    tone = 0.8 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    sound_CN = np.repeat(tone[None], 6, axis=0).astype(np.float32)
    heard_N, reader = hear(write_sound(tmp_path / "a.flac", sound_CN, RATE, "flac", "5.1"))
    assert 0.95 < np.abs(heard_N).max() < 1.3  # the resampler rounds the corners off
    (warning,) = reader.warnings
    assert "peaks up to 8.7 dB above full scale are cut" in warning  # 0.8 * (1 + 2 * 0.707 + 1)


# Time stamps ------------------------------------------------------------------------------


def gap(ending: str, codec: str) -> Callable[[Path], Path]:
    pieces = [(0, voice(0.96)), (2.96, voice(1.6, seed=1))]
    return lambda folder: encode(folder / f"a.{ending}", pieces, codec)


def ragged(folder: Path) -> Path:
    """Stamps that run up to 50 ms ahead now and then."""
    blocks = np.split(voice(3), 30)
    stamps = [n * 0.1 + (0.05 if n % 3 == 1 else 0) for n in range(30)]
    pieces = list(zip(stamps, blocks, strict=True))
    return encode(folder / "a.mkv", pieces, "pcm_s16le", step=4800)


def change(folder: Path) -> Path:
    """Write a transport stream whose sound changes and whose time stamps restart."""
    first = write_sound(folder / "1.ts", np.stack([voice(1)] * 2), 48000, "aac", "stereo")
    second = write_sound(folder / "2.ts", voice(1.5, 32000)[None], 32000, "aac", "mono")
    path = folder / "a.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def offset(folder: Path) -> Path:
    return encode(folder / "a.mp4", [(0.936, voice(2.5))], video=3.4)


LENGTHS = {  # what, its seconds, its gaps
    "gap.webm": (gap("webm", "libopus"), 4.56, 1),
    "gap.mkv": (gap("mkv", "pcm_s16le"), 4.56, 1),
    "gap.mp4": (gap("mp4", "aac"), 4.56, 1),
    "gap.ts": (gap("ts", "aac"), 4.56, 1),
    "gap.flv": (gap("flv", "aac"), 4.56, 1),
    "ragged.mkv": (ragged, 3.0, 0),
    "change.ts": (change, 2.5, 0),
    "offset.mp4": (offset, 3.436, 1),
    "late segment": (lambda to: encode(to / "a.ts", [(500, voice(1))]), 1.0, 0),
}


@pytest.mark.parametrize("what", list(LENGTHS))
def test_as_long_as_a_player_shows(tmp_path: Path, what: str) -> None:
    make, seconds, gaps = LENGTHS[what]
    path = make(tmp_path)
    heard_N, reader = hear(path)
    assert len(heard_N) / 16000 == pytest.approx(seconds, abs=0.07)
    assert reader.report()["gaps"]["count"] == gaps
    assert len([note for note in reader.notes if "silence" in note]) == gaps
    assert not any("truncated" in warning for warning in reader.warnings)
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            shown = container.duration / av.time_base
        assert len(heard_N) / 16000 == pytest.approx(shown, abs=0.04)
    silent = (0, 0.9) if what == "offset.mp4" else (1.1, 2.8) if gaps else None
    if silent is not None:
        begin, end = (round(16000 * place) for place in silent)
        assert rms(heard_N[begin:end]) < 0.003
        assert rms(heard_N[end + 4000 :]) > 0.05
    else:
        assert min(rms(part) for part in np.array_split(heard_N, 8)) > 0.03


@pytest.mark.parametrize("far", [3 * 3600.0, 1e9])
def test_stamps_that_no_recording_has(tmp_path: Path, far: float) -> None:
    sound_N = voice(1)
    path = encode(tmp_path / "a.mkv", [(0, sound_N), (far, sound_N)], "pcm_s16le")
    begin = time.monotonic()
    heard_N, reader = hear(path)
    assert time.monotonic() - begin < 5
    assert len(heard_N) == 32000
    (warning,) = reader.warnings
    assert "time stamps jump at 1.00 s" in warning


def test_silence_is_bounded_and_never_held_in_memory(tmp_path: Path) -> None:
    sound_N = voice(0.5)
    path = encode(tmp_path / "a.mkv", [(0, sound_N), (900, sound_N)], "pcm_s16le")
    with AudioReader(path) as reader:
        lengths = [len(block) for block in reader]
    assert max(lengths) == 16000 and sum(lengths) == round(900.5 * 16000)
    stamps = Stamps(None, discontinuous=False)
    position = Fraction(0)
    for n in range(1000):  # each an hour after the other
        position += stamps.silence_before(Fraction(3600 * n), position) + 1
    assert stamps.silence <= MOST_SILENCE and stamps.jumps > 900 and len(stamps.gaps) < 50


def test_a_step_back_and_jitter_leave_nothing_out() -> None:
    stamps = Stamps(Fraction(0), discontinuous=False)
    position, given = Fraction(0), [0, 1, 2, -500, -499, -498, Fraction(-49705, 100), None, -496]
    for stamp in given:
        position += stamps.silence_before(None if stamp is None else Fraction(stamp), position) + 1
    assert position == len(given) and stamps.jumps == 1


def test_format_changes_on_the_way(tmp_path: Path) -> None:
    path = change(tmp_path)
    heard_N, reader = hear(path)
    assert any("continues as mono with 32000" in note for note in reader.notes)
    assert rms(heard_N[:16000]) == pytest.approx(rms(heard_N[18000:]), rel=0.15)
    with VideoWriter(tmp_path / "out.mp4", 64, 64, 25, path) as writer:
        writer.write(np.zeros((62, 64, 64, 3), np.uint8))
    shown = probe_video(tmp_path / "out.mp4")
    assert shown.sound is not None and shown.sound.shape[1] / 48000 == pytest.approx(2.48, abs=0.05)
    assert rms(shown.sound[1, 60000:110000]) == pytest.approx(0.1, rel=0.2)


# Tracks -----------------------------------------------------------------------------------


def many(path: Path, *, default: int | None) -> Path:
    """Two tracks, in FLAC of 0.02 and in AAC of 0.1."""
    with av.open(str(path), "w") as container:
        streams = [
            container.add_stream(codec, rate=RATE, layout="mono") for codec in ("flac", "aac")
        ]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for stream, level in zip(streams, (0.02, 0.1), strict=True):
            for start in range(0, RATE, 1000):
                block = voice(1, level=level)[None, start : start + 1000]
                container.mux(stream.encode(sound_frame(block, RATE, "mono", start)))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("default", "broken", "asked", "taken"),
    [(0, False, None, 1), (1, False, None, 2), (0, True, None, 2), (1, False, 1, 1),
     (0, False, 2, 2), (None, True, None, 2)],
)  # fmt: skip
def test_which_track(
    tmp_path: Path, default: int | None, broken: bool, asked: int | None, taken: int
) -> None:
    path = many(tmp_path / "a.mkv", default=default)
    if broken:  # a codec that nobody knows
        path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_QXYZ"))
    heard_N, reader = hear(path, asked)
    assert rms(heard_N) == pytest.approx((0.02, 0.1)[taken - 1], rel=0.2)
    assert reader.report()["track"]["number"] == taken
    (note,) = reader.notes
    assert f"sound track {taken} of 2 is heard (1: " in note
    with VideoWriter(tmp_path / "out.mp4", 64, 64, 25, path, track=asked) as writer:
        writer.write(np.zeros((25, 64, 64, 3), np.uint8))
    shown = probe_video(tmp_path / "out.mp4").sound
    assert shown is not None and rms(shown) == pytest.approx(rms(heard_N), rel=0.2)


@pytest.mark.parametrize("track", [0, -1, 3])
def test_a_track_that_is_not_there(tmp_path: Path, track: int) -> None:
    path = many(tmp_path / "a.mkv", default=None)
    with pytest.raises(UserError, match=rf"no sound track {track}; choose one of its 2 \(1: flac"):
        AudioReader(path, track=track)


# Lengths, range, phase --------------------------------------------------------------------

SECOND = (voice(1, 16000) * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("declared", [2_000_000_000, 500_000_000, 2**30, 2**30 - 44, 0x7FFFFFFF, 0])
def test_placeholder_lengths(tmp_path: Path, declared: int) -> None:
    heard_N, reader = hear(write_wav(tmp_path / "a.wav", SECOND, declared=declared))
    assert (len(heard_N), reader.declared_samples, reader.warnings) == (16000, None, [])


@pytest.mark.parametrize("form", [0, 36, 0xFFFFFFFF])
def test_a_length_that_the_form_does_not_hold_is_a_placeholder(tmp_path: Path, form: int) -> None:
    path = write_wav(tmp_path / "a.wav", SECOND, declared=320_000)
    data = bytearray(path.read_bytes())
    data[4:8] = form.to_bytes(4, "little")
    path.write_bytes(data)
    assert hear(path)[1].declared_samples is None


@pytest.mark.parametrize(
    ("declared", "cut"), [(320_000, 0), (2_000_000_000, 1), (32_002, 0), (123_456_788, 0)]
)
def test_cut_off_copies_are_still_noticed(tmp_path: Path, declared: int, cut: int) -> None:
    data = SECOND[: len(SECOND) - cut]
    _, reader = hear(write_wav(tmp_path / "a.wav", data, declared=declared))
    (warning,) = reader.warnings
    assert f"truncated: declared {declared // 2} samples" in warning


def floats(path: Path, samples_N: np.ndarray, codec: str = "<f4") -> Path:
    bits = 8 * np.dtype(codec).itemsize
    return write_wav(path, samples_N.astype(codec).tobytes(), bits=bits, tag=3)


@pytest.mark.parametrize("codec", ["<f4", "<f8"])
def test_floats_at_the_scale_of_integers(tmp_path: Path, codec: str) -> None:
    speech = voice(12, 16000)
    quiet_start = np.concatenate([np.zeros(16000, np.float32), speech])
    heard_N, reader = hear(floats(tmp_path / "a.wav", quiet_start * 32768, codec))
    assert np.allclose(heard_N, quiet_start, atol=1e-6)
    (warning,) = reader.warnings
    assert "taken as 16-bit numbers and divided by 32768" in warning


@pytest.mark.parametrize(
    ("value", "place"), [(1e30, 0.0), (1e30, 3.0), (1e30, 14.0), (40000, 0.0), (100, 3.0)]
)
@pytest.mark.parametrize("codec", ["<f4", "<f8"])
def test_floats_that_are_no_sound(tmp_path: Path, value: float, place: float, codec: str) -> None:
    speech = voice(15, 16000)
    speech[round(place * 16000)] = value
    path = floats(tmp_path / "a.wav", speech, codec)
    pushed = 0
    says = rf"a sample of .* at {place:.2f} s, where full scale is 1"
    with pytest.raises(UserError, match=says), AudioReader(path) as reader:
        for block_N in reader:
            pushed += len(block_N)
    assert pushed >= 16000 * (place - 1)  # the sound before it is heard


def test_floats_somewhat_above_full_scale(tmp_path: Path) -> None:
    loud = 4 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000).astype(np.float32)
    heard_N, reader = hear(floats(tmp_path / "a.wav", loud))
    assert np.array_equal(heard_N, loud.clip(-1, 1))
    (warning,) = reader.warnings
    assert "peaks up to 12.0 dB above full scale are cut (8" in warning


def stereo(path: Path, left: np.ndarray, right: np.ndarray) -> Path:
    data = (np.stack([left, right], axis=1) * 32767).astype("<i2").tobytes()
    return write_wav(path, data, channels=2)


@pytest.mark.parametrize("noise", [0, 0.01])
@pytest.mark.parametrize("start", [0, 4])
def test_channels_in_opposite_phase(tmp_path: Path, noise: float, start: int) -> None:
    speech, hiss = voice(8, 16000), voice(8, 16000, level=noise or 1, seed=1) * (noise > 0)
    left, right = speech + hiss, np.where(np.arange(len(speech)) < start * 16000, 1, -1) * speech
    heard_N, reader = hear(stereo(tmp_path / "a.wav", left, right + hiss))
    assert all(rms(part) > 0.05 for part in np.array_split(heard_N[(start + 1) * 16000 :], 4))
    (warning,) = reader.warnings
    assert "cancel each other out" in warning
    if not start:
        assert np.allclose(heard_N, left, atol=1e-4)
    else:  # and before that it is the mean
        assert np.allclose(heard_N[:48000], ((left + right + hiss) / 2)[:48000], atol=1e-4)


@pytest.mark.parametrize("kind", ["same", "apart", "one side", "quiet"])
def test_ordinary_stereo_is_the_mean(tmp_path: Path, kind: str) -> None:
    left, other = voice(3, 16000), voice(3, 16000, seed=1)
    right = {"same": left, "apart": other, "one side": 0 * left, "quiet": 0.3 * other}[kind]
    path = stereo(tmp_path / "a.wav", left, right)
    heard_N, reader = hear(path)
    samples_N2 = np.frombuffer(path.read_bytes()[44:], "<i2").reshape(-1, 2) / np.float32(32768)
    assert np.array_equal(heard_N, samples_N2.mean(axis=1, dtype=np.float32))
    assert not reader.warnings


# Not sound --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x.wav", "x.mp3", "x.m3u8", "x.txt", "%03d.png", "x.jpg", "x.sdp"]
)
@pytest.mark.parametrize("kind", ["hls", "ffconcat", "dash", "sdp", "picture", "subtitle"])
def test_what_is_no_sound_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    neighbour = write_wav(tmp_path / "secret.wav", SECOND)
    before = neighbour.stat().st_atime_ns
    text = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n",
        "ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="dynamic"/>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        "picture": "P2 2 2 255 0 0 0 0\n",
        "subtitle": "1\n00:00:00,000 --> 00:00:01,000\nHello\n",
    }[kind]
    path = tmp_path / name
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"sound") as caught:
        AudioReader(path)
    assert time.monotonic() - begin < 2
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    assert ("list that names other files" in message) == (kind in ("hls", "ffconcat", "dash"))
    assert neighbour.stat().st_atime_ns == before


def test_the_report_is_json(tmp_path: Path) -> None:
    reader = hear(offset(tmp_path))[1]
    report = json.loads(json.dumps(reader.report(), allow_nan=False))
    assert report["track"] == {"number": 1, "of": 1, "codec": "aac"}
    assert report["gaps"]["first"] == [{"start": 0.0, "seconds": pytest.approx(0.936, abs=0.03)}]
