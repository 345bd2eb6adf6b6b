"""Runs the command, and makes what it reads."""

import wave
from pathlib import Path

import av
import numpy as np
import pytest

from livetalk_model.cli.main import main

RATE = 16000
FAST = ["--steps", "1", "--size", "32x48"]


def write_wav(path: Path, seconds: float, rate: int = RATE) -> Path:
    """Write a tone with a rhythm, 16 bit mono."""
    t = np.arange(round(seconds * rate)) / rate
    samples = (np.sin(t * 1200) * np.sin(t * 8) ** 2 * 9000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def probe(path: Path) -> tuple[int, float, float, tuple[int, int]]:
    """Return frames, seconds of video and of sound, and (height, width)."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        size = video.height, video.width
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        samples = sum(frame.samples for frame in container.decode(sound))
        return frames, frames / 25, samples / sound.rate, size


def being_written(output: Path) -> int:
    """Count the bytes in the ``.part`` files of an output."""
    return sum(part.stat().st_size for part in output.parent.glob(f"{output.name}.*.part"))


def generate(*extra: object) -> int:
    """Run ``livetalk generate --preset tiny``, small and quick; return the exit code."""
    return main(["generate", "--preset", "tiny", "--device", "cpu", *map(str, extra)])


def prepare(*extra: object) -> int:
    """Run ``livetalk prepare --preset tiny --size 32x48``; return the exit code."""
    command = ["prepare", "--preset", "tiny", "--device", "cpu", "--size", "32x48"]
    return main([*command, *map(str, extra)])


def refused(capsys: pytest.CaptureFixture, code: int, *names: str) -> str:
    """Assert exit code 2 and one line that names the file."""
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error
    for name in names:
        assert name in error
    return error
