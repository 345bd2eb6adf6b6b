"""Frames out: sound as long as the picture, colours, impossible outputs, raw frames."""

import errno
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from media_tools import Probe, probe_video, write_sound, write_wav
from PIL import Image

from livetalk_kernels import outputs
from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import check_output
from livetalk_model import StreamOptions, load_pipeline
from livetalk_model.media.frame_rate import frame_rate
from livetalk_model.media.frames import FrameWriter, NpyWriter
from livetalk_model.media.video import SUFFIXES, VideoWriter, open_writer

HEIGHT, WIDTH = 96, 64


def picture(count: int, colour: tuple[int, int, int] = (200, 60, 30)) -> np.ndarray:
    """[count, HEIGHT, WIDTH, 3]: one colour, with a white bar whose row encodes the frame."""
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = colour
    for number, frame in enumerate(frames):
        frame[4 * (number % 24) : 4 * (number % 24) + 4] = 255
    return frames


def tone(path: Path, seconds: float, rate: int = 44100, channels: int = 2) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    samples = np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1)
    data = (samples * 32767).astype("<i2").tobytes()
    return write_wav(path, data, rate=rate, channels=channels)


def write_all(writer: FrameWriter, frames: np.ndarray, step: int = 4) -> None:
    with writer:
        for start in range(0, len(frames), step):
            writer.write(frames[start : start + step])


def check_lengths(probe: Probe, frames: int, fps: Fraction) -> None:
    """Picture and sound are as long as the frames, to within one frame, read either way."""
    assert len(probe.frames) == frames
    assert probe.rate == fps
    assert probe.declared["video"] == pytest.approx(float(frames / fps), abs=1e-6)
    assert abs(probe.declared["audio"] - frames / fps) < 1 / fps
    assert probe.sound is not None
    assert abs(probe.sound.shape[1] / probe.sound_rate - frames / fps) < 1 / fps


@pytest.mark.parametrize(
    ("rate", "channels", "kept"),
    [(44100, 2, True), (48000, 1, True), (32000, 2, True), (16000, 1, False), (8000, 2, False),
     (96000, 2, False), (44100, 6, True)],
)  # fmt: skip
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), 23.976])
def test_sound_is_as_long_as_the_picture(
    tmp_path: Path, rate: int, channels: int, kept: bool, fps: Fraction | float
) -> None:
    path = tmp_path / "a.mp4"
    sound = tone(tmp_path / "a.wav", 3.3, rate, channels)  # longer than the picture: cut
    write_all(VideoWriter(path, HEIGHT, WIDTH, fps, sound), picture(70))
    probe = probe_video(path)
    check_lengths(probe, 70, frame_rate(fps))
    assert probe.sound_rate == (rate if kept else 48000)
    assert probe.sound is not None and len(probe.sound) == min(channels, 2)
    assert not list(tmp_path.glob("*.part"))


def test_picture_and_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frames = picture(30)
    write_all(VideoWriter(path, HEIGHT, WIDTH), frames, step=7)
    probe = probe_video(path)
    assert probe.times == pytest.approx([n / 25 for n in range(30)])
    assert probe.pixels == "yuv420p"
    assert probe.colour == (1, 1, 1, 1)  # BT.709 matrix, primaries, transfer; limited range
    assert probe.sound is None
    for got, wanted in zip(probe.frames, frames, strict=True):
        assert np.abs(got.astype(int) - wanted).mean() < 5
    assert np.abs(probe.frames[0][50, 30].astype(int) - (200, 60, 30)).max() <= 3


def test_sound_starts_with_the_picture(tmp_path: Path) -> None:
    sound = np.zeros((1, 48000), np.float32)
    sound[0, 24000:24100] = 0.8
    source = write_sound(tmp_path / "a.wav", sound, 48000, "pcm_s16le", "mono")
    write_all(VideoWriter(tmp_path / "a.mp4", HEIGHT, WIDTH, 25, source), picture(25))
    heard = probe_video(tmp_path / "a.mp4").sound
    assert heard is not None
    assert abs(int(np.abs(heard[0]).argmax()) - 24050) < 60


def test_tail_of_short_sound_is_kept(tmp_path: Path) -> None:
    sound = np.zeros((1, 15800), np.float32)  # 12.5 ms less than 25 frames, at another rate
    sound[0, -160:] = 0.8
    source = write_sound(tmp_path / "a.wav", sound, 16000, "pcm_s16le", "mono")
    write_all(VideoWriter(tmp_path / "a.mp4", HEIGHT, WIDTH, 25, source), picture(25))
    probe = probe_video(tmp_path / "a.mp4")
    check_lengths(probe, 25, Fraction(25))
    assert probe.sound is not None
    assert np.abs(probe.sound[0, 3 * 15650 : 3 * 15800]).max() > 0.6


def test_live_sound(tmp_path: Path) -> None:
    time = np.arange(40000) / 16000
    sound = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    frames = picture(50)
    with open_writer(tmp_path / "a.mp4", HEIGHT, WIDTH, live_sound=True) as writer:
        writer.write_sound(sound[:5000])  # ahead of the picture
        writer.write(frames[:28])
        writer.write_sound(sound[5000:20000])  # late
        writer.write(frames[28:])
        writer.write_sound(sound[20000:])  # more than the picture needs
    probe = probe_video(tmp_path / "a.mp4")
    check_lengths(probe, 50, Fraction(25))
    assert probe.sound is not None
    heard = probe.sound[0, : 3 * 32000 : 3]
    assert np.abs(heard - sound[:32000])[500:-500].max() < 0.03


def test_live_sound_of_a_session(tmp_path: Path) -> None:
    """As the README says: each block to the writer and the session, the frames to the writer."""
    pipeline = load_pipeline(preset="tiny", device="cpu")
    avatar = pipeline.prepare(Image.new("RGB", (64, 64), (90, 120, 80)), size=(32, 48))
    path = tmp_path / "talk.mp4"
    sound = (0.3 * np.sin(np.arange(20000) * 0.2)).astype(np.float32)
    with (
        pipeline.session(avatar, options=StreamOptions(steps=1)) as session,
        open_writer(path, *avatar.size, live_sound=True) as writer,
    ):
        for block in np.array_split(sound, 3):
            writer.write_sound(block)
            for frames in session.push(block):
                writer.write(frames)
        for frames in session.finish():
            writer.write(frames)
    probe = probe_video(path)
    check_lengths(probe, 32, Fraction(25))
    assert probe.sound is not None
    assert np.abs(probe.sound[0, : 3 * 20000 : 3] - sound)[500:-500].max() < 0.03


def test_sound_of_a_writer_without_live_sound_is_ignored(tmp_path: Path) -> None:
    source = tone(tmp_path / "a.wav", 1)
    for name, sound in (("a.npy", None), ("a.mp4", None), ("b.mp4", source)):
        with open_writer(tmp_path / name, HEIGHT, WIDTH, sound=sound) as writer:
            writer.write(picture(25))
            writer.write_sound(np.ones(100000, np.float32))
    check_lengths(probe_video(tmp_path / "b.mp4"), 25, Fraction(25))


def test_ctrl_c_within_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = NpyWriter(tmp_path / "a.npy", HEIGHT, WIDTH)
    writer.write(picture(3))

    def half_a_frame(frame_HWC: np.ndarray) -> None:
        writer._raw.write(frame_HWC[:10].tobytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_put", half_a_frame)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(picture(1))
    assert np.array_equal(np.load(tmp_path / "a.npy"), picture(3))


def test_old_file_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"old")
    writer = open_writer(path, HEIGHT, WIDTH)
    writer.write(picture(2))
    writer.abort()
    assert path.read_bytes() == b"old"
    write_all(open_writer(path, HEIGHT, WIDTH), picture(2))
    assert np.load(path).shape == (2, HEIGHT, WIDTH, 3)


def test_sound_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.wav: no such audio file"):
        VideoWriter(tmp_path / "a.mp4", HEIGHT, WIDTH, 25, tmp_path / "none.wav")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        check_output(tmp_path / "a.mp4", SUFFIXES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.avi", r"unknown ending '\.avi'; use \.mp4 or \.npy"),
        ("a", r"unknown ending ''; use \.mp4 or \.npy"),
        ("folder.mp4", "is a folder; give the output a file name"),
        ("file/a.mp4", "is not a folder; use another output folder"),
        ("file/deeper/a.npy", "is not a folder; use another output folder"),
        ("x" * 300 + ".mp4", "File name too long"),
    ],
)
def test_impossible_outputs(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match=says) as caught:
        open_writer(tmp_path / name, HEIGHT, WIDTH)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(UserError, match="is not writable; use another output folder"):
        check_output(tmp_path / "new" / "a.mp4", SUFFIXES)
    assert list(tmp_path.iterdir()) == []


def test_check_of_the_output_makes_no_folder(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "a.mp4", SUFFIXES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 5000])
def test_impossible_fps(tmp_path: Path, fps: float) -> None:
    with pytest.raises(UserError, match="frame rate"):
        open_writer(tmp_path / "a.mp4", HEIGHT, WIDTH, fps)
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_and_options(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.npy", HEIGHT, WIDTH) as writer:
        for wrong in (picture(1)[0], picture(1)[:, 1:], picture(1).astype(np.float32)):
            with pytest.raises(ValueError, match=r"uint8 \[n, 96, 64, 3\]"):
                writer.write(wrong)
        writer.write(torch.from_numpy(picture(2)).numpy())
        writer.write(picture(2)[:0])
    assert writer.frames == 2
    with pytest.raises(ValueError, match="even"):
        VideoWriter(tmp_path / "a.mp4", 95, 64)
    with pytest.raises(ValueError, match="positive"):
        NpyWriter(tmp_path / "a.npy", 0, 64)
    with pytest.raises(ValueError, match="exclude each other"):
        VideoWriter(tmp_path / "a.mp4", 96, 64, sound="a.wav", live_sound=True)


def test_npy_is_streamed_and_maps(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (28, HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_all(open_writer(tmp_path / "a.npy", HEIGHT, WIDTH), frames, step=5)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert mapped.dtype == np.uint8
    assert np.array_equal(mapped, frames)
    assert (tmp_path / "a.npy").stat().st_size == 128 + frames.nbytes


def test_frames_of_other_memory_layout(tmp_path: Path) -> None:
    frames = picture(3)
    turned = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    write_all(open_writer(tmp_path / "a.npy", HEIGHT, WIDTH), turned)
    assert np.array_equal(np.load(tmp_path / "a.npy"), frames)
