"""Speed of a chunk on one and on two ranks, each a separate process, as ``--nproc`` starts them.

The ranks share this machine's cores, or have a GPU each. They run ``livetalk profile`` as in
``--compare``, so the time of a chunk is that of the stream and a message.
"""

import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from psnr import FLOOR, psnr

from livetalk_model.config import NEW_FRAMES, get_preset
from livetalk_model.media.synthetic import SAMPLE_RATE, picture, speech
from livetalk_model.profile.paced import Worker

CHECKED = 2  # chunks
WARM = 2
PROGRAM = [sys.executable, "-m", "livetalk_model.cli.main"]
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def options(setup: Any, ranks: int) -> list[str]:
    """Build the command line's options."""
    settings = setup.settings
    words = ["--preset", settings["preset"], "--device", setup.source.device.type]
    return [*words, "--dtype", DTYPES[settings["dtype"]], "--nproc", str(ranks)]


def sound_int16() -> np.ndarray:
    """Generate the sound of the checked chunks."""
    samples = np.concatenate([speech(index) for index in range(CHECKED)])
    return (samples * 32767).clip(-32768, 32767).astype("<i2")


def generate(setup: Any, ranks: int, folder: Path) -> np.ndarray:
    """Make frames with ``livetalk generate``."""
    sound, portrait, output = folder / "sound.wav", folder / "face.png", folder / f"{ranks}.npy"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(sound_int16().tobytes())
    picture(get_preset(setup.settings["preset"]).size).save(portrait)
    files = ["--portrait", str(portrait), "--audio", str(sound), "--output", str(output)]
    command = [*PROGRAM, "generate", *files, *options(setup, ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(output)


@pytest.fixture(scope="module")
def alone(setup: Any) -> np.ndarray:
    """Make frames in this process."""
    with setup.pipeline.session(setup.avatar) as session:
        frames = np.concatenate([*session.push(sound_int16()), *session.finish()])
    setup.unload()  # the ranks need the memory
    return frames


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks(
    setup: Any, measure: Callable[..., None], alone: np.ndarray, ranks: int, tmp_path: Path
) -> None:
    """Time one chunk in the middle of a stream."""
    if setup.source.device.type == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"{ranks} ranks need as many GPUs")
    frames = generate(setup, ranks, tmp_path)
    assert frames.shape == alone.shape and len(frames) == CHECKED * NEW_FRAMES
    floor = FLOOR[setup.settings["dtype"]]
    assert psnr(frames, alone) >= floor, f"{psnr(frames, alone):.1f} dB against this process"
    chunks = setup.rounds + WARM
    extra = ["--no-ops", "--no-video", "--chunks", str(chunks), "--paced"]
    worker = Worker(
        f"{ranks} ranks", [*PROGRAM, "profile", *options(setup, ranks), *extra], tmp_path
    )
    done = False
    try:
        worker.start()
        worker.load()
        measure(worker.chunk, group="ranks", warm=WARM)
        done = True
    finally:
        worker.close(interrupt=not done)
