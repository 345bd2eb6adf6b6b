"""Fixtures of the command tests: what a user has."""

from pathlib import Path

import numpy as np
import pytest
from cli_tools import write_wav
from PIL import Image


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    """A picture."""
    path = tmp_path / "portrait.png"
    y, x = np.mgrid[:80, :98]  # of no frame here is more than a fifth cut off
    Image.fromarray(np.stack([2 * x, 3 * y, 90 + 0 * x], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """1.5 s of sound."""
    return write_wav(tmp_path / "speech.wav", 1.5)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the output."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
