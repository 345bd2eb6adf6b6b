"""A stream's sound and its ground truth: held-out clips of one voice, joined."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from livetalk_kernels.errors import UserError

from ..config import NEW_FRAMES
from ..train.data.clips import Clips
from ..train.data.synthetic import TRUTH
from ..train.faces.identity import Identity
from ..train.faces.mouth import HOP, follow, loudness
from ..train.faces.painter import Painter, Pose
from .series import Floats

_MAKE = "make some with 'livetalk dataset --synthetic 32 --split test --output DIR'"


@dataclass(frozen=True, kw_only=True, eq=False)
class Script:
    """A stream to be made.

    Attributes:
        person: Who is seen.
        voice: Who is heard.
        wave: float32 [T * 640] at 16 kHz, whole chunks.
        opening: Mouth opening determined by the sound, [T].
        width: Mouth width, likewise, without the smile, which the sound does not determine.
        loudness: 0..1, [T].
        truth: What was drawn for it, float32 [T, 9]; columns `TRUTH`.
        distinct: Frames before the first clip repeats.
    """

    person: Identity
    voice: str
    wave: NDArray[np.float32]
    opening: Floats
    width: Floats
    loudness: Floats
    truth: NDArray[np.float32]
    distinct: int

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.opening) // NEW_FRAMES

    def until(self, chunks: int) -> Self:
        """Truncate to a number of chunks, if longer."""
        frames = chunks * NEW_FRAMES
        cut = {n: getattr(self, n)[:frames] for n in ("opening", "width", "loudness", "truth")}
        return replace(self, wave=self.wave[: frames * HOP], **cut)


def write_scripts(clips: Clips, *, streams: int, chunks: int) -> list[Script]:
    """Join clips to streams, each with another voice and person as long as there are any.

    Args:
        clips: Drawn clips.
        streams: Number of streams.
        chunks: Length of each, in chunks of 28 frames; if a voice has less, its clips repeat.

    Raises:
        UserError: The clips were not drawn by this version.
    """
    voices: dict[str, list[int]] = defaultdict(list)
    for number, entry in enumerate(clips.index.clips):
        if clips.index.truth != TRUTH or not {"person", "voice"} <= entry.facts.keys():
            raise UserError(
                f"{clips.folder}: what its faces do is not known, as it is of drawn ones; {_MAKE}"
            )
        voices[str(entry.facts["voice"])].append(number)
    names = sorted(voices)
    scripts = []
    for stream in range(streams):
        voice, turn = names[stream % len(names)], stream // len(names)
        own = voices[voice]
        first = turn % len(own)
        scripts.append(_script(clips, voice, own[first:] + own[:first], chunks))
    return scripts


def _script(clips: Clips, voice: str, numbers: Sequence[int], chunks: int) -> Script:
    """Play clips one after another; the first one determines who is seen."""
    entries = clips.index.clips
    needed, frames = chunks * NEW_FRAMES, 0
    waves, truths, openings, widths, levels = [], [], [], [], []
    for number in cycle(numbers):
        wave = clips.sound(number).numpy()
        opening, width = follow(wave)  # loudness is relative to each clip
        waves.append(wave)
        openings.append(opening)
        widths.append(width)
        levels.append(loudness(wave))
        truths.append(clips.truth(number).numpy())
        frames += len(opening)
        if frames >= needed:
            break
    return Script(
        person=Identity.of(int(entries[numbers[0]].facts["person"])),
        voice=voice,
        wave=np.concatenate(waves)[: needed * HOP],
        opening=np.concatenate(openings)[:needed],
        width=np.concatenate(widths)[:needed],
        loudness=np.concatenate(levels)[:needed],
        truth=np.concatenate(truths)[:needed],
        distinct=sum(entries[number].frames for number in numbers),
    )


def portrait_of(person: Identity, size: tuple[int, int]) -> Image.Image:
    """Draw the person at rest, like a portrait."""
    return Image.fromarray(Painter(person, size).draw(Pose()))
