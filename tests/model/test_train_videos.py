"""Real videos cut into clips."""

from pathlib import Path

import numpy as np
import pytest
from media_tools import write_wav

from livetalk_kernels.errors import UserError
from livetalk_model.media.video import VideoWriter
from livetalk_model.train.data.videos import background_motion, find_videos, read_clips
from livetalk_model.train.faces.mouth import HOP

SIZE = (32, 48)


def write_video(
    path: Path, frames: int, *, fps: float = 25, moving: bool = False, sound: bool = True
) -> Path:
    """A bright square that goes down in front of grey, or of noise."""
    rng = np.random.default_rng(0)
    wav = None
    if sound:
        t = np.arange(round(frames / fps * 16000)) / 16000
        wav = path.with_suffix(".wav")
        write_wav(wav, (9000 * np.sin(t * 1000)).astype("<i2").tobytes())
    with VideoWriter(path, 64, 96, fps, sound=wav) as writer:
        for n in range(frames):
            frame = np.full((1, 64, 96, 3), 90, np.uint8)
            if moving:
                frame[:] = rng.integers(0, 2, (1, 8, 12, 1)).repeat(8, 1).repeat(8, 2) * 150
            frame[0, n % 40 : n % 40 + 20, 40:56] = 220
            writer.write(frame)
    return path


def test_a_video_becomes_clips(tmp_path):
    write_video(tmp_path / "talk.mp4", 200)
    (tmp_path / "talk.txt").write_text("A man talks.\n")
    (video,) = find_videos(tmp_path)
    *clips, left = read_clips(video, size=SIZE, frames=80)
    assert [clip.frames.shape for clip in clips] == [(80, *SIZE, 3)] * 2
    assert [len(clip.audio) for clip in clips] == [80 * HOP] * 2
    assert [clip.truth.shape for clip in clips] == [(80, 0)] * 2
    assert [clip.facts["first"] for clip in clips] == [0, 80]
    assert {clip.facts["prompt"] for clip in clips} == {"A man talks."}
    assert "1.6 s with sound are left" in left
    bright = (clips[0].frames[:, :, 24, 0] > 150).argmax(axis=1)
    assert bright[0] == 0 and abs(bright[39] - 19) <= 1  # at half the size
    assert np.abs(clips[1].audio.astype(int)).max() > 5000
    assert video.file(0) != video.file(1)


@pytest.mark.parametrize(("fps", "frames"), [(50, 200), (12.5, 50), (30, 120)])
def test_other_rates_become_25(tmp_path, fps, frames):
    write_video(tmp_path / "talk.mp4", frames, fps=fps)
    (clip,) = read_clips(find_videos(tmp_path)[0], size=SIZE, frames=100)
    assert abs(len(clip.frames) - 100) <= 1
    falls = np.flatnonzero(
        np.diff((clip.frames[:, :, 24, 0] > 150).argmax(axis=1).astype(int)) < -9
    )
    assert np.allclose(np.diff(falls), 40 / fps * 25, atol=1.01)


def test_moving_backgrounds_are_left_out(tmp_path):
    write_video(tmp_path / "talk.mp4", 80, moving=True)
    (reason,) = read_clips(find_videos(tmp_path)[0], size=SIZE, frames=80)
    assert "the background moves by" in reason
    assert background_motion(np.zeros((50, 32, 32, 3), np.uint8)) == 0


def test_a_video_without_sound_is_refused(tmp_path):
    write_video(tmp_path / "mute.mp4", 80, sound=False)
    with pytest.raises(UserError, match=r"mute\.mp4: has no sound; choose a file"):
        list(read_clips(find_videos(tmp_path)[0], size=SIZE, frames=80))


def test_sound_alone_and_folders_without_videos(tmp_path):
    with pytest.raises(UserError, match="holds no videos"):
        find_videos(tmp_path)
    write_video(tmp_path / "talk.mp4", 80)
    (tmp_path / "talk.wav").rename(tmp_path / "only.mkv")
    with pytest.raises(UserError, match="has no video"):
        list(read_clips(find_videos(tmp_path)[0], size=SIZE, frames=80))


def test_the_crop_must_be_in_the_video(tmp_path):
    write_video(tmp_path / "talk.mp4", 80)
    (video,) = find_videos(tmp_path)
    (clip,) = read_clips(video, size=SIZE, frames=80, crop=(36, 0, 24, 64))
    assert (clip.frames[20, :, 24, 0] > 150).any()
    with pytest.raises(UserError, match="reaches beyond"):
        list(read_clips(video, size=SIZE, frames=80, crop=(90, 0, 24, 64)))
