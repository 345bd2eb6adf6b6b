"""Speech for drawn faces: espeak-ng if installed, else synthetic vowels.

espeak-ng is run as a program, with an argument list, to generate data only.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from livetalk_kernels.errors import UserError

from ...media.resample import Resampler
from ...media.synthetic import SAMPLE_RATE, babble
from ..faces.cast import TEXTS, VOICES, Split

PROGRAM = "espeak-ng"
INSTALL = "install it with 'apt-get install espeak-ng'"
MADE_UP = f"note: {PROGRAM} is not installed, the speech is made up; {INSTALL}"
_RATE = 22050  # of espeak-ng's own voices
_SECONDS = 60.0  # timeout; a sentence takes 0.1
_PAUSES = (0.15, 0.7)  # seconds between two sentences
_LEVELS = (0.05, 0.12)  # root mean square of a clip's speech
_SPEEDS = (130, 190)  # words per minute
_PITCHES = (25, 80)  # of espeak-ng's 0..99


@dataclass(frozen=True, kw_only=True)
class Speech:
    """The speech in a clip.

    Attributes:
        wave: float32 [N] at 16 kHz, whole steps of 1/32768.
        voice: Name of the voice; ``babble`` for synthetic vowels.
        texts: Sentences; empty for synthetic vowels.
    """

    wave: NDArray[np.float32]
    voice: str
    texts: Sequence[str]


def find_program() -> str | None:
    """Find espeak-ng's path; None if not installed."""
    return shutil.which(PROGRAM)


def make_speech(
    rng: np.random.Generator, split: Split, samples: int, *, program: str | None
) -> Speech:
    """Generate speech by one voice that fills a clip: sentences separated by pauses.

    Args:
        rng: Chooses voice, sentences, speed, pitch, pauses and loudness.
        split: Split of voices and texts.
        samples: Length at 16 kHz.
        program: espeak-ng's path; None for synthetic vowels.

    Raises:
        UserError: espeak-ng fails.
    """
    level = rng.uniform(*_LEVELS)
    if program is None:
        wave = babble(rng, samples)
        return Speech(wave=_levelled(wave, level), voice="babble", texts=())
    voice = VOICES[split][int(rng.integers(len(VOICES[split])))]
    speed, pitch = int(rng.integers(*_SPEEDS)), int(rng.integers(*_PITCHES))
    pieces, texts, length = [], [], 0
    while length < samples:
        text = TEXTS[split][int(rng.integers(len(TEXTS[split])))]
        pause = np.zeros(round(rng.uniform(*_PAUSES) * SAMPLE_RATE), np.float32)
        pieces += [pause, speak(program, voice, text, speed=speed, pitch=pitch)]
        texts.append(text)
        length += len(pieces[-2]) + len(pieces[-1])
    wave = np.concatenate(pieces)[:samples]
    return Speech(wave=_levelled(wave, level), voice=voice, texts=tuple(texts))


def speak(
    program: str, voice: str, text: str, *, speed: int = 175, pitch: int = 50
) -> NDArray[np.float32]:
    """Run espeak-ng on a text.

    Args:
        program: Its path.
        voice: A voice's name.
        text: Text to speak.
        speed: Words per minute.
        pitch: 0..99.

    Returns:
        float32 [N] at 16 kHz.

    Raises:
        UserError: It cannot be run, or returns no sound.
    """
    # In its own process group: Ctrl-C is for us to handle.
    command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-z", "--stdout", text]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=False, process_group=0
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{program}: cannot be run ({error}); {INSTALL}") from None
    said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    samples = _samples_of(done.stdout)
    if done.returncode or not len(samples):
        why = said[0] if said else f"exit code {done.returncode}"
        raise UserError(f"{program}: says nothing as {voice} ({why}); {INSTALL}")
    resampler = Resampler(_RATE, SAMPLE_RATE, channels=1)
    parts = [resampler.push(samples[None]), resampler.finish()]
    return np.concatenate(parts, axis=1)[0]


def _samples_of(data: bytes) -> NDArray[np.float32]:
    """Parse a WAV file without a length in its header, as received through a pipe."""
    mono_16 = np.frombuffer(data[20:24], "<u2").tolist() == [1, 1] and data[34:36] == b"\x10\0"
    rate = int.from_bytes(data[24:28], "little")
    if data[:4] != b"RIFF" or data[36:40] != b"data" or not mono_16 or rate != _RATE:
        return np.zeros(0, np.float32)
    body = data[44 : 44 + (len(data) - 44) // 2 * 2]
    return (np.frombuffer(body, "<i2") / 32768).astype(np.float32)


def _levelled(wave: NDArray[Any], level: float) -> NDArray[np.float32]:
    """Scale to that root mean square unless silent, in steps of 16 bits."""
    heard = wave[np.abs(wave) > 1e-3]
    gain = level / np.sqrt(np.mean(heard**2)) if len(heard) else 1.0
    steps = np.clip(np.round(wave * gain * 32768), -32768, 32767)
    return (steps / 32768).astype(np.float32)
