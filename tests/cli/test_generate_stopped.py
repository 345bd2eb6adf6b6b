"""Runs that are ended from outside: what is finished is a video, and another run may follow."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_tools import FAST, being_written, generate, probe, write_wav

GENERATE = ("-m", "livetalk_model.cli.main", "generate", "--preset", "tiny", "--device", "cpu")


def start_long(portrait: Path, audio: Path, video: Path, *before: str, **options):
    """Start a run of two minutes of sound; return once it has written some of its video."""
    write_wav(audio, 120.0)
    process = subprocess.Popen(
        [*(before or (sys.executable, *GENERATE)), "--portrait", str(portrait), "--audio",
         str(audio), "--output", str(video), *FAST],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while being_written(video) < 20000 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is not None or being_written(video) >= 20000, "it never came so far"
    return process


def check_stopped_early(video: Path, portrait: Path, speech: Path) -> None:
    """Check that what was finished is a video, alone in its folder, and that a run may follow."""
    assert [p.name for p in video.parent.iterdir()] == [video.name]
    frames, seconds, sound, _ = probe(video)
    assert 0 < frames < 3000
    assert abs(seconds - sound) <= 1 / 25
    assert generate("--portrait", portrait, "--audio", speech, "--output", video, *FAST) == 0
    assert [p.name for p in video.parent.iterdir()] == [video.name]


@pytest.mark.parametrize(
    ("number", "count"),
    [(signal.SIGINT, 3), (signal.SIGTERM, 1), (signal.SIGHUP, 1)],
)
def test_interrupt_keeps_what_is_finished(number, count, portrait, speech, out, tmp_path):
    video = out / "talk.mp4"
    process = start_long(portrait, tmp_path / "long.wav", video)
    for _ in range(count):  # some wrappers forward a signal that the terminal has sent already
        process.send_signal(number)
        time.sleep(0.0005)
    printed, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "stopped early" in printed
    check_stopped_early(video, portrait, speech)


def test_a_lost_terminal_keeps_what_is_finished(portrait, speech, out, tmp_path):
    """Not only SIGHUP: what is written on the terminal fails from then on."""
    video = out / "talk.mp4"
    ours, theirs = os.openpty()
    code = f"import os, sys; os.login_tty({theirs}); os.execv(sys.executable, sys.argv[1:])"
    process = start_long(
        portrait, tmp_path / "long.wav", video, sys.executable, "-c", code, sys.executable,
        *GENERATE, stdin=theirs, stdout=theirs, stderr=theirs, pass_fds=[theirs],
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert process.wait(30) in (1, 130)
    check_stopped_early(video, portrait, speech)


def test_a_signal_that_was_ignored_at_the_start_stays_so(portrait, speech, out, tmp_path):
    video = out / "talk.mp4"
    process = start_long(portrait, tmp_path / "long.wav", video, "nohup", sys.executable, *GENERATE)
    process.send_signal(signal.SIGHUP)
    before = being_written(video)
    deadline = time.monotonic() + 30
    while being_written(video) <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None and being_written(video) > before
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    check_stopped_early(video, portrait, speech)


def test_a_second_ctrl_c_names_what_is_left(portrait, out, tmp_path):
    stuck = (
        "import sys, time; from livetalk_model.media.video import FrameWriter; "
        "FrameWriter.close = lambda self: time.sleep(60); "
        "from livetalk_model.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    video = out / "talk.mp4"
    process = start_long(
        portrait, tmp_path / "long.wav", video, sys.executable, "-c", stuck, *GENERATE[2:]
    )
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, error = process.communicate(timeout=30)
    (left,) = out.iterdir()
    assert process.returncode == 130 and error.endswith(f"killed; {left} is playable\n")
    shutil.copy(left, out / "left.mp4")
    assert probe(out / "left.mp4")[0] > 0
