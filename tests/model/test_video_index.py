"""A complete MP4 is a normal one: indexed, with its length, seekable. A killed one plays."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_tools import read_boxes, write_sound

from livetalk_model.media.video import VideoWriter

SIDE = 64
FPS = [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001)]


def numbered(first: int, count: int) -> np.ndarray:
    """Frames [count, 64, 64, 3] whose brightness by blocks spells their number in binary."""
    frames = np.full((count, 4, 4, 3), 40, np.uint8)
    for offset, frame in enumerate(frames):
        for bit in range(16):
            frame[bit // 4, bit % 4] = 200 if (first + offset) >> bit & 1 else 40
    return frames.repeat(16, axis=1).repeat(16, axis=2)


def number_of(frame: av.VideoFrame) -> int:
    blocks = frame.to_ndarray(format="gray").reshape(4, 16, 4, 16).mean(axis=(1, 3)).ravel()
    return sum(1 << bit for bit, block in enumerate(blocks) if block > 120)


def film(path: Path, frames: int, fps: Fraction, rate: int = 48000) -> Path:
    """A film whose sound has a click at the middle of every frame that is a multiple of 100."""
    sound = np.zeros((1, round(frames / fps * rate)), np.float32)
    for click in range(100, frames, 100):
        place = round((click + Fraction(1, 2)) / fps * rate)
        sound[0, place : place + 20] = 0.9
    source = write_sound(path.with_suffix(".wav"), sound, rate, "pcm_s16le", "mono")
    with VideoWriter(path, SIDE, SIDE, fps, source) as writer:
        for first in range(0, frames, 28):
            writer.write(numbered(first, min(28, frames - first)))
    assert not writer.warnings
    return path


def number(content: bytes, start: int, size: int = 4) -> int:
    return int.from_bytes(content[start : start + size], "big")


@pytest.mark.parametrize("fps", FPS)
def test_the_index_is_whole_and_has_the_length(tmp_path: Path, fps: Fraction) -> None:
    frames = 333
    boxes = list(read_boxes(film(tmp_path / "a.mp4", frames, fps).read_bytes()))
    assert [name for name, _ in boxes if "/" not in name] == ["ftyp", "free", "mdat", "moov"]
    assert not any("mvex" in name for name, _ in boxes)  # which would announce fragments

    def all_of(name: str) -> list[bytes]:
        return [content for path, content in boxes if path == name]

    exact = frames / fps
    (movie,) = all_of("moov/mvhd")
    assert number(movie, 16) / number(movie, 12) == pytest.approx(float(exact), abs=1e-3)
    for header in all_of("moov/trak/tkhd"):
        assert number(header, 20) / number(movie, 12) == pytest.approx(float(exact), abs=0.022)
    picture, sound = all_of("moov/trak/mdia/mdhd")
    assert Fraction(number(picture, 16), number(picture, 12)) == exact  # to the last digit
    assert abs(Fraction(number(sound, 16), number(sound, 12)) - exact) < 1 / fps
    edits = [number(edit, 12) for edit in all_of("moov/trak/edts/elst")]
    assert [number(edit, 4) for edit in all_of("moov/trak/edts/elst")] == [1, 1]
    assert edits == [0, 1024]  # players skip the delay of the AAC encoder
    (sizes, _) = all_of("moov/trak/mdia/minf/stbl/stsz")
    assert number(sizes, 8) == frames
    (keys,) = all_of("moov/trak/mdia/minf/stbl/stss")
    assert number(keys, 4) >= frames // round(fps)


@pytest.mark.parametrize("fps", FPS)
def test_seeking_lands_where_it_should(tmp_path: Path, fps: Fraction) -> None:
    frames = 1000
    path = film(tmp_path / "a.mp4", frames, fps)
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(float(frames / fps * av.time_base), abs=1)
        assert container.streams.video[0].frames == frames
    for wanted in (999, 990, 700, 400, 300, 5, 0):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(round(wanted / fps / stream.time_base), stream=stream)
            looked = 0
            for frame in container.decode(stream):
                looked += 1
                assert number_of(frame) == round(frame.time * fps)
                if number_of(frame) == wanted:
                    break
            assert number_of(frame) == wanted and looked <= round(fps)
    for click in (100, 900):  # the sound is found at the same place, after a jump
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            container.seek(round((click - 5) / fps / stream.time_base), stream=stream)
            pieces = [next(container.decode(stream)) for _ in range(24)]
            samples = np.concatenate([piece.to_ndarray()[0] for piece in pieces])
            heard = pieces[0].time + int(np.abs(samples).argmax()) / stream.rate
            assert heard == pytest.approx(float((click + 0.5) / fps), abs=0.001)


def test_a_writer_that_is_killed_leaves_a_film(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_video_index import numbered, SIDE
from livetalk_model.media.video import VideoWriter
import numpy as np
writer = VideoWriter({str(tmp_path / "a.mp4")!r}, SIDE, SIDE, 25, live_sound=True)
for first in range(0, 1000, 25):
    writer.write_sound(np.zeros(16000, np.float32))
    writer.write(numbered(first, 25))
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], check=False, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".part"
    whole = part.read_bytes()
    for size in (len(whole), len(whole) // 2):  # and the disk may have less of it
        part.write_bytes(whole[:size])
        numbers, seconds = shown(part)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= (925 if size == len(whole) else 400)
        assert seconds == pytest.approx(len(numbers) / 25, abs=1)


def test_a_writer_that_is_killed_while_it_writes_the_index_leaves_a_film(tmp_path: Path) -> None:
    """The index is there, or a part of it, but the box before the fragments is not turned yet."""
    path = film(tmp_path / "a.mp4", 333, Fraction(25))
    whole = bytearray(path.read_bytes())
    place = whole.index(b"mdat") - 4
    index = len(whole) - len(dict(read_boxes(whole))["moov"]) - 8
    whole[place : place + 8] = (36).to_bytes(4, "big") + b"free"  # as it was
    for size in (len(whole), len(whole) - 100, index + 8, index + 4, index):
        path.write_bytes(whole[:size])
        assert shown(path)[0] == list(range(333)), size


def shown(path: Path) -> tuple[list[int], float]:
    """Numbers of the frames, and seconds of sound, that a player shows of a file that is cut."""
    numbers, samples = [], 0
    with av.open(str(path), format="mp4") as container:
        for packet in container.demux():
            with suppress(av.error.InvalidDataError):  # a player passes over the last piece
                for frame in packet.decode():
                    if isinstance(frame, av.VideoFrame):
                        numbers.append(number_of(frame))
                    else:
                        samples += frame.samples
    return numbers, samples / 48000
