"""Sound in: every length exact, nothing lost at the end, nothing shifted, bad files refused."""

import io
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from media_tools import read_audio, write_sound, write_wav

from livetalk_kernels.errors import UserError
from livetalk_model.bundled import SPEECH
from livetalk_model.media.audio import AudioReader
from livetalk_model.media.resample import Resampler
from livetalk_model.media.sound_decoder import SoundDecoder
from livetalk_model.media.wav_header import declared_wav_samples

CHANNELS = {"mono": 1, "stereo": 2, "5.1": 6}


def speechlike(seconds: float, rate: int, channels: int = 1, extra: int = 0) -> np.ndarray:
    """[channels, n]: a tone, silence, and a burst in the very last 10 ms."""
    time = np.arange(int(seconds * rate) + extra) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time) * (time < seconds / 2)
    tail = rate // 100
    tone[-tail:] = 0.5 * np.sin(2 * np.pi * 500 * time[:tail])
    return np.repeat(tone[None].astype(np.float32), channels, axis=0)


def at_16k(samples: int, rate: int) -> int:
    return -(-samples * 16000 // rate)


def as_pcm16(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("layout", list(CHANNELS))
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000, 96000])
def test_length_start_and_tail_survive(tmp_path: Path, rate: int, layout: str) -> None:
    sound = speechlike(1.0, rate, CHANNELS[layout], extra=123)
    if layout == "5.1":
        sound[[0, 1, 3, 4, 5]] = 0  # the voice is in the centre
    path = write_sound(tmp_path / "a.wav", sound, rate, "pcm_s16le", layout)
    clip = read_audio(path)
    assert clip.samples.dtype == np.float32
    assert len(clip.samples) == at_16k(sound.shape[1], rate)
    assert clip.seconds == len(clip.samples) / 16000
    assert (clip.source_rate, clip.channels) == (rate, CHANNELS[layout])
    assert clip.declared_samples == clip.decoded_samples == sound.shape[1]
    assert clip.warnings == ()
    wanted = 0.3 * np.sin(2 * np.pi * 440 * np.arange(7900) / 16000)
    assert np.abs(clip.samples[200:7500] - wanted[200:7500]).max() < 2e-3  # a sample off: 0.05
    assert np.sqrt((clip.samples[-160:] ** 2).mean()) == pytest.approx(0.353, abs=0.01)


@pytest.mark.parametrize(
    ("ending", "codec", "rate", "exact"),
    [
        ("wav", "pcm_s24le", 44100, True),
        ("wav", "pcm_f32le", 44100, True),
        ("wav", "pcm_f64le", 48000, True),
        ("wav", "pcm_u8", 8000, True),
        ("wav", "pcm_mulaw", 8000, True),
        ("aiff", "pcm_s16be", 44100, True),
        ("flac", "flac", 44100, True),
        ("mp3", "libmp3lame", 44100, True),
        ("ogg", "libopus", 48000, True),
        ("webm", "libopus", 48000, True),
        ("m4a", "aac", 44100, False),
        ("mkv", "aac", 48000, False),  # whole AAC frames: up to 1023 more samples
    ],
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_codecs(
    tmp_path: Path, ending: str, codec: str, rate: int, exact: bool, layout: str
) -> None:
    sound = speechlike(1.0, rate, CHANNELS[layout], extra=77)
    clip = read_audio(write_sound(tmp_path / f"a.{ending}", sound, rate, codec, layout))
    surplus = len(clip.samples) - at_16k(sound.shape[1], rate)
    assert surplus == 0 if exact else 0 <= surplus <= at_16k(1023, rate)
    assert clip.warnings == ()
    wanted = at_16k(sound.shape[1], rate)
    tail = clip.samples[wanted - 160 : wanted]
    assert np.sqrt((tail**2).mean()) == pytest.approx(0.353, abs=0.04)
    # Where the tone stops, to within half a period of it.
    loud = np.flatnonzero(np.abs(clip.samples[: wanted - 200]) > 0.15)
    assert loud[0] < 40 and abs(loud[-1] - 8000) < 40


def test_sound_of_a_longer_video(tmp_path: Path) -> None:
    sound = speechlike(1.0, 48000, 2)
    clip = read_audio(write_sound(tmp_path / "a.mp4", sound, 48000, "aac", "stereo", video=True))
    assert clip.codec == "aac"
    assert 0 <= len(clip.samples) - 16000 <= 342
    assert clip.warnings == ()


def test_16_khz_pcm_is_not_touched(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-32768, 32768, 40001, dtype=np.int16)
    path = write_wav(tmp_path / "a.wav", values.astype("<i2").tobytes())
    clip = read_audio(path)
    assert np.array_equal(clip.samples, values.astype(np.float32) / 32768)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.full(16000, 0.5, np.float32), np.full(16000, -0.25, np.float32)
    data = np.stack([left, right], axis=1).astype("<f4").tobytes()
    clip = read_audio(write_wav(tmp_path / "a.wav", data, channels=2, bits=32, tag=3))
    assert np.array_equal(clip.samples, np.full(16000, 0.125, np.float32))


def test_last_sample_is_heard(tmp_path: Path) -> None:
    click = np.zeros(48000, np.float32)
    click[-1] = 1
    data = click.astype("<f4").tobytes()
    clip = read_audio(write_wav(tmp_path / "a.wav", data, rate=48000, bits=32, tag=3))
    # The filter spreads it: a third of its height at a third of the rate.
    assert np.abs(clip.samples[-1]) > 0.1
    assert not clip.samples[:15000].any()


@pytest.mark.parametrize("samples", [1, 2, 7, 100])
@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_shorter_than_the_filter(tmp_path: Path, rate: int, samples: int) -> None:
    path = write_wav(tmp_path / "a.wav", as_pcm16(np.full(samples, 0.5)), rate=rate)
    assert len(read_audio(path).samples) == at_16k(samples, rate)


def test_blocks_have_the_asked_length(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", as_pcm16(speechlike(1.0, 44100)), rate=44100)
    with AudioReader(path, block=3000) as reader:
        assert reader.declared_seconds == 1.0
        blocks = list(reader)
        assert reader.decoded_samples == 44100
    assert [len(block) for block in blocks] == [3000] * 5 + [1000]
    assert np.array_equal(np.concatenate(blocks), read_audio(path).samples)


def test_resampler_does_not_depend_on_the_blocks() -> None:
    sound = np.random.default_rng(0).standard_normal((2, 10007)).astype(np.float32)

    def run(step: int) -> np.ndarray:
        resampler = Resampler(44100, 48000, channels=2)
        blocks = [resampler.push(sound[:, i : i + step]) for i in range(0, 10007, step)]
        return np.concatenate([*blocks, resampler.finish()], axis=1)

    assert run(10007).shape == (2, 10892)
    assert np.array_equal(run(10007), run(333))


@pytest.mark.parametrize("silence", [0, 1, 12345, 44100, 44101, 200_007])
@pytest.mark.parametrize("rate", [44100, 48000])
def test_silence_is_resampled_as_zeros_are(silence: int, rate: int) -> None:
    sound = np.random.default_rng(0).standard_normal((1, 30007)).astype(np.float32)
    short, long = Resampler(44100, rate, channels=1), Resampler(44100, rate, channels=1)
    got = [short.push(sound), *short.push_silence(silence), short.push(sound), short.finish()]
    zeros = np.zeros((1, silence), np.float32)
    wanted = [long.push(sound), long.push(zeros), long.push(sound), long.finish()]
    assert np.array_equal(np.concatenate(got, axis=1), np.concatenate(wanted, axis=1))


def test_truncated_wav_is_reported_and_read(tmp_path: Path) -> None:
    sound = as_pcm16(speechlike(1.0, 16000))
    path = write_wav(tmp_path / "cut.wav", sound[:20001], declared=len(sound))
    clip = read_audio(path)
    assert len(clip.samples) == clip.decoded_samples == 10000
    assert clip.declared_samples == 16000
    (warning,) = clip.warnings
    assert "cut.wav" in warning and "declared 16000" in warning and "decoded 10000" in warning
    assert warning.endswith("; what is missing is not heard; copy or export it again")


@pytest.mark.parametrize("declared", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_streamed_wav_is_read_to_its_end(tmp_path: Path, declared: int) -> None:
    data = as_pcm16(speechlike(1.0, 16000))
    clip = read_audio(write_wav(tmp_path / "a.wav", data, declared=declared))
    assert len(clip.samples) == 16000
    assert clip.declared_samples is None
    assert clip.warnings == ()


def test_rf64_declares_in_its_ds64_chunk() -> None:
    ds64 = b"ds64" + struct.pack("<IQQQI", 28, 0, 48000 * 4, 0, 0)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, 48000, 192000, 4, 16)
    data = b"data" + struct.pack("<I", 0xFFFFFFFF)
    header = b"RF64" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + ds64 + form + data
    assert declared_wav_samples(io.BytesIO(header)) == 48000
    assert declared_wav_samples(io.BytesIO(header[:40])) is None


def test_truncated_flac_is_reported(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 88200))
    path = write_sound(tmp_path / "a.flac", noise.astype(np.float32), 44100, "flac", "mono")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clip = read_audio(path)
    assert 0 < clip.decoded_samples < 60000
    assert any("declared 88200" in warning for warning in clip.warnings)


def test_damaged_packets_are_left_out_and_reported(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 88200))
    path = write_sound(tmp_path / "a.mka", noise.astype(np.float32), 44100, "flac", "mono")
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 20000, 50):
        data[position] ^= 0xFF
    path.write_bytes(data)
    clip = read_audio(path)
    assert len(clip.samples) > 8000
    assert clip.warnings
    assert all(warning.endswith("copy or export it again") for warning in clip.warnings)


def make_bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.wav"
    floats = np.zeros(16000, "<f4")
    match kind:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("This is no sound, although its name says so.\n" * 100)
        case "half a header":
            write_wav(path, as_pcm16(np.zeros(100)))
            path.write_bytes(path.read_bytes()[:20])
        case "header only, truncated":
            write_wav(path, b"", declared=32000)
        case "zero length":
            write_wav(path, b"")
        case "no samples":
            write_wav(path, b"\0")
        case "NaN" | "Inf":
            floats[5000] = float(kind)
            write_wav(path, floats.tobytes(), bits=32, tag=3)
        case "absurd rate":
            write_wav(path, as_pcm16(np.zeros(100)), rate=3)
        case "unknown codec":
            write_wav(path, bytes(1000), tag=0x7654)
        case "video without sound":
            with av.open(str(path), "w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width = stream.height = 64
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        case "below a file":
            path.write_bytes(b"x")
            path = path / "a.wav"
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such audio file"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "not a sound file"),
        ("half a header", "not a sound file"),
        ("header only, truncated", "no sound samples"),
        ("zero length", "no sound samples"),
        ("no samples", "no sound samples"),
        ("NaN", r"NaN or Inf at 0\.31 s"),
        ("Inf", r"NaN or Inf at 0\.31 s"),
        ("absurd rate", "3 samples per second"),
        ("unknown codec", "no decoder"),
        ("video without sound", "has no sound"),
        ("below a file", "no such audio file"),
    ],
)
def test_bad_files_give_one_line(tmp_path: Path, kind: str, says: str) -> None:
    path = make_bad_file(kind, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        read_audio(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wav(tmp_path / "a.wav", bytes(100))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    with pytest.raises(UserError, match="cannot be read; change its permissions"):
        read_audio(path)


def test_bundled_speech() -> None:
    clip = read_audio(SPEECH)
    assert (clip.source_rate, clip.channels, clip.warnings) == (16000, 1, ())
    assert 6 < clip.seconds < 7
    assert 0.5 < np.abs(clip.samples).max() < 0.99


def test_names_with_colons_and_tags_of_any_encoding(tmp_path):
    samples = np.zeros(1600, "<i2").tobytes()
    path = write_wav(tmp_path / "take:1.wav", samples)
    info = b"INAM" + (5).to_bytes(4, "little") + b"Caf\xe9\0\0"
    listed = b"LIST" + (4 + len(info)).to_bytes(4, "little") + b"INFO" + info
    path.write_bytes(path.read_bytes() + listed)
    with AudioReader(path) as reader:
        assert sum(len(block) for block in reader) == 1600


def test_damage_before_the_first_sample(tmp_path, monkeypatch):
    path = write_wav(tmp_path / "x.wav", np.zeros(1600, "<i2").tobytes())

    def broken(self):
        yield from ()
        raise UserError(f"{path}: {self._place()}")

    monkeypatch.setattr(SoundDecoder, "_decode", broken)
    with pytest.raises(UserError, match="its start"):
        AudioReader(path)
