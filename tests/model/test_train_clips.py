"""Clips on disk and the windows that a trainer reads of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from livetalk_kernels.errors import UserError
from livetalk_model.train.data.clips import (
    INDEX,
    MAX_CLIP_BYTES,
    Clip,
    Clips,
    ClipWriter,
    Index,
    check_clip_size,
    check_room,
)
from livetalk_model.train.data.windows import WindowReader, frames_of_chunks
from livetalk_model.train.draws import Draws
from livetalk_model.train.faces.mouth import HOP

SIZE = (16, 32)
INDEX_OF = Index(size=SIZE, truth=("opening", "blink"), settings={"seed": 1})


def clip(frames: int, number: int = 0) -> Clip:
    """Frame n of clip c has the value n, its truth (c, n), and its sound c + n / 1000."""
    n = np.arange(frames)
    sound = np.repeat(number * 1000 + n, HOP)
    return Clip(
        frames=np.broadcast_to(n[:, None, None, None], (frames, *SIZE, 3)).astype(np.uint8),
        audio=sound.astype(np.int16),
        truth=np.stack([np.full(frames, number), n], 1).astype(np.float32),
        facts={"voice": "en"},
    )


def write(folder: Path, *lengths: int) -> ClipWriter:
    writer = ClipWriter(folder, INDEX_OF)
    for number, length in enumerate(lengths):
        writer.enter(writer.store(f"{number}.safetensors", clip(length, number)))
    writer.write_index(complete=True)
    return writer


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "a" / "b", 40, 50)
    clips = Clips(tmp_path / "a" / "b")
    assert len(clips) == 2 and clips.index.complete and clips.index.size == SIZE
    assert [entry.frames for entry in clips.index.clips] == [40, 50]
    assert np.array_equal(clips.frames(1), clip(50, 1).frames)
    assert np.array_equal(clips.sound(1), clip(50, 1).audio / np.float32(32768))
    assert np.array_equal(clips.truth(1), clip(50, 1).truth)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "0.safetensors", "1.safetensors", INDEX,
    ]  # fmt: skip


def test_a_second_run_continues(tmp_path):
    write(tmp_path, 40)
    writer = ClipWriter(tmp_path, INDEX_OF)
    assert list(writer.entries) == ["0.safetensors"]
    assert not json.loads((tmp_path / INDEX).read_text())["complete"]
    (tmp_path / "0.safetensors").unlink()
    assert not ClipWriter(tmp_path, INDEX_OF).entries


def test_a_clip_that_was_not_entered_is_not_there(tmp_path):
    writer = write(tmp_path, 40)
    writer.store("1.safetensors", clip(50))
    assert len(Clips(tmp_path)) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(INDEX_OF, size=(16, 16)), "another size"),
        (replace(INDEX_OF, truth=("opening",)), "another truth"),
        (replace(INDEX_OF, settings={"seed": 2}), r"another seed \(1, not 2\)"),
    ],
)
def test_clips_of_other_settings_are_not_mixed(tmp_path, other, said):
    write(tmp_path, 40)
    with pytest.raises(UserError, match=said):
        ClipWriter(tmp_path, other)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty"):
        ClipWriter(tmp_path, INDEX_OF)
    with pytest.raises(UserError, match="is a file"):
        ClipWriter(tmp_path / "letter.txt", INDEX_OF)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def spoil(tmp_path: Path, **changes: object) -> None:
    path = tmp_path / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "of version 2, here 1 is read"),
        ({"format": "x"}, "is not an index of clips"),
        ({"clips": []}, "holds no clips yet"),
        ({"size": [16]}, r"size has 1 entries"),
        ({"clips": [{"file": "../0.safetensors", "frames": 40, "facts": {}}]}, "not the name"),
        ({"clips": [{"file": "/x.safetensors", "frames": 40, "facts": {}}]}, "not the name"),
        ({"clips": [{"file": "0.bin", "frames": 40, "facts": {}}]}, "not the name"),
        ({"clips": [{"file": "9.safetensors", "frames": 40, "facts": {}}]}, "no such clip file"),
        ({"clips": [{"file": "0.safetensors", "frames": 41, "facts": {}}]}, "is not the clip"),
        ({"clips": [{"file": "0.safetensors", "frames": 0, "facts": {}}]}, "not from 1 to"),
        (
            {"clips": [{"file": "0.safetensors", "frames": 40, "facts": {"prompt": 3}}]},
            "a prompt that is not text",
        ),
        ({"truth": []}, "is not the clip"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, changes, said):
    write(tmp_path, 40)
    spoil(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        Clips(tmp_path)


def test_a_damaged_clip_is_named_before_training(tmp_path):
    write(tmp_path, 40, 40)
    path = tmp_path / "1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"1\.safetensors: truncated or damaged"):
        Clips(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Clips(tmp_path / "none")


def test_sizes_are_bounded(tmp_path):
    check_clip_size((512, 512), MAX_CLIP_BYTES // (512 * 512 * 3))
    with pytest.raises(UserError, match="choose fewer --seconds"):
        check_clip_size((512, 512), MAX_CLIP_BYTES // (512 * 512 * 3) + 1)
    check_room(tmp_path / "new", 1000)
    with pytest.raises(UserError, match="are free there"):
        check_room(tmp_path / "new", 10**18)


def reader(folder: Path, seed: int = 0, **options: int) -> WindowReader:
    return WindowReader(Clips(folder), Draws(seed=seed), **options)


def test_windows_are_whole_and_their_reference_is_not_in_them(tmp_path):
    write(tmp_path, 34, 60, 10, 80)
    windows = reader(tmp_path).read(step=0, samples=range(300))
    assert windows.frames.shape == (300, 33, *SIZE, 3) and windows.frames.dtype == torch.uint8
    assert windows.truth.shape == (300, 33, 2) and windows.audio.shape == (300, 33 * HOP)
    firsts = windows.frames[:, 0, 0, 0, 0].tolist()
    assert tuple(firsts) == windows.starts
    assert tuple(windows.truth[:, 0, 0].int().tolist()) == windows.clips
    assert torch.equal(windows.truth[:, :, 1], windows.frames[..., 0, 0, 0].float())
    heard = (windows.audio[:, ::HOP] * 32768).round().int()
    assert torch.equal(heard % 1000, windows.frames[..., 0, 0, 0].int())
    lengths = {0: 34, 1: 60, 3: 80}
    seen = set()
    for number, start, other in zip(
        windows.clips, windows.starts, windows.reference[:, 0, 0, 0].tolist(), strict=True
    ):
        seen |= {(number, start), (number, "reference", other)}
        assert other not in range(start, start + 33) and other < lengths[number]
    # Every start and every picture has its turn, the first and the last of a clip too.
    assert {(0, 0), (0, 1), (0, "reference", 0), (0, "reference", 33)} <= seen
    assert len({start for start in seen if start[0] == 3 and len(start) == 2}) > 40


def test_windows_follow_from_seed_step_and_sample(tmp_path):
    write(tmp_path, 60, 70)
    windows = reader(tmp_path).read(step=7, samples=[4, 5, 6])
    alone = reader(tmp_path).read(step=7, samples=[5])
    assert torch.equal(windows.frames[1:2], alone.frames)
    assert torch.equal(windows.reference[1:2], alone.reference)
    others = (
        reader(tmp_path, seed=1).read(step=7, samples=range(4, 24)),
        reader(tmp_path).read(step=8, samples=range(4, 24)),
        reader(tmp_path).read(step=7, samples=range(4, 24), purpose="samples"),
    )
    starts = {reader(tmp_path).read(step=7, samples=range(4, 24)).starts}
    assert len(starts | {other.starts for other in others}) == 4


def test_sound_before_the_window(tmp_path):
    write(tmp_path, 60)
    windows = reader(tmp_path, lead=20).read(step=0, samples=range(50))
    heard = (windows.audio[:, ::HOP] * 32768).round().int()
    assert heard.shape == (50, 53)
    for row, start in zip(heard.tolist(), windows.starts, strict=True):
        assert row == [max(0, start - 20 + n) for n in range(53)]


def test_several_chunks_in_a_row_and_clips_too_short(tmp_path):
    assert [frames_of_chunks(k) for k in (1, 2, 5)] == [33, 61, 145]
    write(tmp_path, 62, 61)
    windows = reader(tmp_path, frames=frames_of_chunks(2)).read(step=0, samples=range(8))
    assert set(windows.clips) == {0}
    with pytest.raises(UserError, match="have 62 frames at most, 90 are needed"):
        reader(tmp_path, frames=frames_of_chunks(3))


def test_what_the_vae_sees(tmp_path):
    write(tmp_path, 60)
    windows = reader(tmp_path).read(step=0, samples=[0, 1])
    pictures, condition = windows.pictures(), windows.condition()
    assert pictures.shape == condition.shape == (2, 3, 33, *SIZE)
    assert torch.equal(windows.motion(), pictures[:, :, :5])
    assert torch.all(condition[:, :, 1:] == 0)  # grey
    assert torch.equal(condition[:, 0, 0, 0, 0], (windows.reference[:, 0, 0, 0] / 255 - 0.5) * 2)
