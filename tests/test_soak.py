"""A long stream keeps its memory flat and loses no sound; ten minutes of it are ``make soak``."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "soak.py"


def soak(seconds: float, warm: float) -> None:
    """Run the script in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seconds", str(seconds), "--warm", str(warm)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_minutes_and_a_half():
    # 150.01 s: a tail that fills neither a chunk nor a frame. The heap finds its final form within
    # the first minute and a half; from then on memory is flat.
    soak(150.01, warm=90)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_minutes():
    soak(600.01, warm=90)
