"""Several runs at once with one output: the last one to end leaves its own, whole."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from cli_tools import FAST, generate, prepare, probe, write_wav

from livetalk_kernels.outputs import LEFT_SECONDS, PartFile
from livetalk_model.media.video import open_writer

HEIGHT, WIDTH = 32, 48


def write(path: Path, grey: int, count: int, wait: float, failures: list[BaseException]) -> None:
    """Write frames of one grey, pausing between them."""
    try:
        time.sleep(wait)
        with open_writer(path, HEIGHT, WIDTH) as writer:
            for _ in range(count):
                writer.write(np.full((1, HEIGHT, WIDTH, 3), grey, np.uint8))
                time.sleep(wait / 10)
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("name", ["x.mp4", "x.npy"])
def test_writers_of_one_video(name: str, tmp_path: Path) -> None:
    """Start and feed twenty pairs at random times."""
    chance = random.Random(0)
    for trial in range(20):
        path, failures = tmp_path / str(trial) / name, []
        counts = {40: chance.randrange(1, 20), 200: chance.randrange(20, 40)}
        runs = [
            threading.Thread(target=write, args=(path, *pair, chance.random() / 50, failures))
            for pair in counts.items()
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        assert not failures and [file.name for file in path.parent.iterdir()] == [name]
        if name == "x.npy":
            frames = np.load(path)
            grey = int(frames.flat[0])
            assert len(frames) == counts[grey] and (frames == grey).all()
        else:
            with av.open(str(path)) as container:
                assert sum(1 for _ in container.decode(video=0)) in counts.values()


def test_two_runs_with_one_output(portrait: Path, tmp_path: Path) -> None:
    """Runs of 6 and 2.5 s of sound; the longer one starts first and usually ends last."""
    output = tmp_path / "out/same.mp4"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "livetalk_model.cli.main", "generate", "--preset", "tiny",
             "--device", "cpu", "--portrait", str(portrait), "--output", str(output), "--audio",
             str(write_wav(tmp_path / f"{seconds}.wav", seconds)), *FAST],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seconds in (6.0, 2.5)
    ]  # fmt: skip
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "150 frames" in said[0][0] and "63 frames" in said[1][0]
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    frames, seconds, sound, _ = probe(output)
    assert frames in (150, 63) and abs(seconds - sound) <= 1 / 25


@pytest.mark.parametrize("old", [0, 1, 7])
def test_what_killed_runs_have_left_is_named_once(old, portrait, speech, out, capsys) -> None:
    video = out / "talk.mp4"
    left = [PartFile(video).part for _ in range(old + 1)]
    day = time.time() - LEFT_SECONDS - 60
    for part in left[:old]:
        part.write_bytes(b"some frames")
        os.utime(part, (day, day))
    assert generate("--portrait", portrait, "--audio", speech, "--output", video, *FAST) == 0
    errors = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(errors) == (old > 0)
    if old:
        assert sum(str(part) in errors[0] for part in left[:old]) == min(old, 5)
        assert str(left[old]) not in errors[0]  # it may be a run under way
    assert all(part.exists() for part in left)
    avatar = out / "me.avatar"
    assert prepare("--portrait", portrait, "--output", avatar) == 0
    assert "warning" not in capsys.readouterr().err
