"""Speech of espeak-ng, run as a program, and of our own where it is missing."""

import os
from pathlib import Path

import numpy as np
import pytest

from livetalk_kernels.errors import UserError
from livetalk_model.train.data.voices import INSTALL, PROGRAM, find_program, make_speech, speak
from livetalk_model.train.faces.cast import TEXTS, VOICES


@pytest.fixture
def program() -> str:
    """espeak-ng; in CI, which installs it, a missing one fails."""
    found = find_program()
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"no {PROGRAM} here; {INSTALL}")
    assert found, f"no {PROGRAM} here; {INSTALL}"
    return found


def test_all_voices_are_there_and_differ(program):
    """An unknown variant of a voice is silently the voice itself."""
    names = [*VOICES["train"], *VOICES["test"]]
    sounds = {speak(program, name, "Good morning to you.").tobytes() for name in names}
    assert len(sounds) == len(names)


def test_speed_pitch_and_text_are_heard(program):
    plain = speak(program, "en-us", "Good morning to you.")
    assert plain.dtype == np.float32 and 0.05 < np.abs(plain).max() <= 1
    assert 0.6 * 16000 < len(plain) < 2 * 16000
    assert len(speak(program, "en-us", "Good morning to you.", speed=120)) > 1.2 * len(plain)
    other = speak(program, "en-us", "Good morning to you.", pitch=90)
    assert not np.array_equal(plain, other)


def test_a_voice_that_is_not_there(program):
    with pytest.raises(UserError, match=r"says nothing as klingon9 .*apt-get install"):
        speak(program, "klingon9", "hello")


def test_speech_fills_the_clip(program):
    speech, again = (
        make_speech(np.random.default_rng(5), "test", 60000, program=program) for _ in range(2)
    )
    assert speech.wave.shape == (60000,) and speech.wave.dtype == np.float32
    assert np.array_equal(speech.wave, again.wave)
    assert speech.voice in VOICES["test"] and set(speech.texts) <= set(TEXTS["test"])
    steps = speech.wave * 32768
    assert np.array_equal(steps, np.round(steps)) and 0.01 < np.abs(speech.wave).max() <= 1


def test_speech_of_our_own():
    one, other = (
        make_speech(np.random.default_rng(seed), "train", 32000, program=None) for seed in (1, 2)
    )
    assert one.voice == "babble" and not one.texts
    assert not np.array_equal(one.wave, other.wave)
    assert np.isfinite(one.wave).all() and 0.05 < np.abs(one.wave).max() <= 1


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no data' >&2; exit 3", r"no data"),
        ("exit 3", "exit code 3"),
        ("echo nonsense", "exit code 0"),
    ],
)
def test_a_program_that_fails(tmp_path: Path, script: str, said: str):
    path = tmp_path / PROGRAM
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    with pytest.raises(UserError, match=rf"says nothing as en \({said}\); install"):
        speak(str(path), "en", "hello")


def test_a_program_that_cannot_be_run(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be run"):
        speak(str(tmp_path / "none"), "en", "hello")
