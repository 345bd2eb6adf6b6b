"""Generates the samples that come with the package: `python examples/make_samples.py`.

The portraits need only Pillow; the speech needs the program espeak-ng.
"""

import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from livetalk_model.bundled import SPEECH
from livetalk_model.media.audio import SAMPLE_RATE, AudioReader
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.painter import Painter, Pose

PERSONS = {"ada": 27, "ben": 1, "carl": 34, "dora": 404}
"""Bundled portraits, by the numbers that `train.faces.cast` splits: training never sees dora."""
SIDE = 192

TEXT = (
    "Hello! I am a drawing, and my voice is made by a machine. "
    "livetalk makes every portrait talk, live."
)
PEAK = 0.7
"""Peak of the speech, relative to full scale."""


def speak(text: str, path: Path) -> None:
    """Speak a text with espeak-ng into a 16-bit mono WAV file at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder) / "spoken.wav"
        voice = ["-v", "en-us+f4", "-s", "172", "-p", "45", "-g", "2"]
        subprocess.run(["espeak-ng", *voice, "-w", str(spoken), text], check=True)
        with AudioReader(spoken) as reader:
            samples = np.concatenate(list(reader))
    samples = samples * (PEAK / np.abs(samples).max())
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def main() -> None:
    """Make all samples."""
    for name, number in PERSONS.items():
        drawn = Painter(Identity.of(number), (SIDE, SIDE)).draw(Pose())
        Image.fromarray(drawn).save(SPEECH.with_name(f"{name}.png"), optimize=True)
    speak(TEXT, SPEECH)


if __name__ == "__main__":
    main()
