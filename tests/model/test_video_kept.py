"""What is finished is kept: after any exception, and on a disk that takes no more."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from media_tools import probe_video, read_boxes, write_wav

from livetalk_kernels import outputs
from livetalk_kernels.errors import NumericsError, UserError
from livetalk_model.media.frames import FrameWriter, WholeWrites
from livetalk_model.media.video import VideoWriter, open_writer
from livetalk_model.media.writer import BackgroundWriter

SIDE = 32
COUNT = 120
NAMES = ("a.mp4", "a.npy")


def noise(count: int = COUNT) -> np.ndarray:
    """Frames that hardly compress, so that a limit of bytes falls anywhere among them."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def hiss(path: Path, seconds: float, *, broken_at: float | None = None) -> Path:
    """Noise as a float WAV file, with NaN in it at ``broken_at`` seconds."""
    samples = np.random.default_rng(1).normal(0, 0.1, round(seconds * 16000)).astype("<f4")
    if broken_at is not None:
        samples[round(broken_at * 16000)] = np.nan
    return write_wav(path, samples.tobytes(), bits=32, tag=3)


def feed(writer: FrameWriter | BackgroundWriter, frames: np.ndarray, step: int = 7) -> None:
    with writer:
        for start in range(0, len(frames), step):
            writer.write(frames[start : start + step])


def kept(path: Path) -> np.ndarray:
    """The frames of the file, all of them decodable."""
    return np.load(path) if path.suffix == ".npy" else np.stack(probe_video(path).frames)


def same(found: np.ndarray, given: np.ndarray) -> bool:
    """Whether those are the first of the frames, as far as the codec is exact."""
    return bool(np.abs(found.astype(int) - given[: len(found)]).mean() < 25)


def is_indexed(path: Path) -> bool:
    names = [name for name, _ in read_boxes(path.read_bytes()) if "/" not in name]
    return names == ["ftyp", "free", "mdat", "moov"]


def open_one(path: Path, background: bool) -> FrameWriter | BackgroundWriter:
    writer = open_writer(path, SIDE, SIDE)
    return BackgroundWriter(writer) if background else writer


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, as ``ulimit -f`` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), UserError("bad sound"), NumericsError("DiT", "NaN"),
     RuntimeError("a bug"), MemoryError(), OSError(errno.EIO, "another file")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_ends_the_block(
    tmp_path: Path, name: str, error: BaseException, background: bool
) -> None:
    path = tmp_path / "new" / name
    writer = open_one(path, background)
    with pytest.raises(type(error)) as caught, writer:
        writer.write(noise(33))
        raise error
    assert caught.value is error
    assert writer.frames == 33 and not writer.warnings
    assert [file.name for file in path.parent.iterdir()] == [name]
    assert len(kept(path)) == 33 and same(kept(path), noise(33))
    assert path.suffix == ".npy" or is_indexed(path)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_frame_nothing_is_left(tmp_path: Path, name: str, background: bool) -> None:
    for error in (RuntimeError("a bug"), KeyboardInterrupt(), None):
        with (
            suppress(RuntimeError, KeyboardInterrupt),
            open_one(tmp_path / "new" / name, background),
        ):
            if error is not None:
                raise error
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_writer_used_wrongly_keeps_its_frames(
    tmp_path: Path, name: str, background: bool
) -> None:
    writer = open_one(tmp_path / name, background)
    with pytest.raises(ValueError, match="frames must be uint8"), writer:
        writer.write(noise(10))
        writer.write(noise(10)[:, 1:])
    assert writer.frames == len(kept(tmp_path / name)) == 10


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("broken_at", [0.5, 2.2])
def test_sound_that_fails_keeps_the_picture(
    tmp_path: Path, broken_at: float, background: bool
) -> None:
    path, sound = tmp_path / "a.mp4", hiss(tmp_path / "a.wav", 5, broken_at=broken_at)
    inner = VideoWriter(path, SIDE, SIDE, 25, sound)
    writer = BackgroundWriter(inner, capacity=1) if background else inner
    with pytest.raises(UserError, match=r"a\.wav: holds NaN"):
        feed(writer, noise())
    probe = probe_video(path)
    assert 1 <= writer.frames == len(probe.frames) <= broken_at * 25 + 2
    assert probe.sound is not None and is_indexed(path)
    assert same(np.stack(probe.frames), noise())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a.wav"]


@pytest.mark.parametrize("kind", ["a.mp4", "a.mp4 with sound", "a.npy"])
def test_a_disk_that_takes_no_more_at_any_byte(tmp_path: Path, kind: str) -> None:
    name, _, with_sound = kind.partition(" ")
    sound = hiss(tmp_path / "a.wav", 6) if with_sound else None
    path, frames = tmp_path / "out" / name, noise()
    feed(open_writer(path, SIDE, SIDE, sound=sound), frames)
    size = path.stat().st_size
    sizes = {0, 1, 127, 128, 129, 1000, size - 1, size - 7, size - 1000}
    sizes |= set(range(0, size, size // 25))
    complete = 0
    for room in sorted(sizes):
        path.unlink(missing_ok=True)
        writer = open_writer(path, SIDE, SIDE, sound=sound)
        error: UserError | None = None
        with largest_file(room):
            try:
                feed(writer, frames)
            except UserError as failure:
                error = failure
        assert [file.name for file in path.parent.glob("*")] == [name][: writer.frames], room
        if writer.frames:
            found = kept(path)
            assert len(found) == writer.frames and same(found, frames), room
            assert path.stat().st_size <= room
            assert with_sound == "" or probe_video(path).sound is not None
        if name == "a.npy":
            assert writer.frames == max(0, room - 128) // (SIDE * SIDE * 3)
        elif error is None and not writer.warnings:
            # Whether it fits is up to this run: x264 does not always spend the same bytes.
            assert writer.frames == COUNT and is_indexed(path)
            continue
        else:
            assert bool(writer.warnings) == bool(writer.frames)
        if writer.frames == COUNT:  # but for the index
            assert error is None and "has no index" in writer.warnings[0]
            complete += 1
            continue
        assert error is not None and "\n" not in str(error)
        assert str(error).startswith(f"{path}: ") and "limit on the size of files" in str(error)
        if writer.frames:
            assert f"the first {writer.frames} frames are kept" in str(error)
    assert complete >= (name == "a.mp4")


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_under_the_thread(tmp_path: Path, name: str) -> None:
    writer = BackgroundWriter(open_writer(tmp_path / name, SIDE, SIDE), capacity=4)
    with largest_file(100_000), pytest.raises(UserError, match=r"the first \d+ frames are kept"):
        feed(writer, noise(600), 2)
    assert 0 < writer.frames == len(kept(tmp_path / name)) < 600
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_named(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = WholeWrites.write

    def write(self: WholeWrites, data: bytes) -> int:
        if self.tell() + len(data) > 100_000:
            self.failure = OSError(number, os.strerror(number))
        return writes(self, data)

    monkeypatch.setattr(WholeWrites, "write", write)
    writer = open_writer(tmp_path / name, SIDE, SIDE)
    with pytest.raises(UserError, match=r"disk is full; free some space.* frames are kept$"):
        feed(writer, noise(600))
    assert 0 < writer.frames == len(kept(tmp_path / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_and_ctrl_c(tmp_path: Path, name: str) -> None:
    """The file cannot be finished after Ctrl-C: what plays is kept all the same."""
    writer = open_writer(tmp_path / name, SIDE, SIDE)
    writer.write(noise(100))
    (part,) = tmp_path.iterdir()
    with (
        largest_file(part.stat().st_size + 50),
        pytest.raises((KeyboardInterrupt, UserError)),
        writer,
    ):
        raise KeyboardInterrupt
    assert 0 < writer.frames == len(kept(tmp_path / name)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be_had(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder became read-only meanwhile: the part file stays, and the error names it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    writer = open_writer(tmp_path / name, SIDE, SIDE)
    with monkeypatch.context() as patch:
        for rename in ("replace", "rename", "link"):
            patch.setattr(outputs.os, rename, refuse)
        with pytest.raises(UserError, match="is left in ") as caught:
            feed(writer, noise(30))
    (part,) = tmp_path.iterdir()
    assert str(caught.value).endswith(str(part)) and part.name.startswith(name)
    whole = part.rename(tmp_path / name)
    assert len(kept(whole)) == 30 and (name == "a.npy" or is_indexed(whole))
