"""A long stream keeps its memory flat and loses no sound; ten minutes of it are ``make soak``."""

import os
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
        # Large blocks go back to the system at once, so that what grows is what is held, not the
        # gaps of a heap.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_minute():
    # 70.01 s: a tail that fills neither a chunk nor a frame.
    soak(70.01, warm=35)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_minutes():
    soak(600.01, warm=60)
