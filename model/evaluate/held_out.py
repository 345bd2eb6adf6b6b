"""Draws held-out clips for an evaluation that is not given any."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..config import NEW_FRAMES
from ..train.data.clips import MAX_CLIP_BYTES, Clips, ClipWriter, Index, check_room
from ..train.data.synthetic import TRUTH, drawn_settings, make_clip
from ..train.faces.cast import VOICES
from ..train.faces.mouth import FPS

LONGEST, SHORTEST = 60.0, 3.0
"""Seconds of a clip: longer streams repeat it; shorter ones have some to spare."""


@contextmanager
def held_out_clips(
    *,
    streams: int,
    chunks: int,
    size: tuple[int, int],
    seed: int,
    program: str | None,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Clips]:
    """Draw a clip of the test split for each stream, in a folder that is removed afterwards.

    Voices differ as long as there are any; after that, each has equally many clips.

    Args:
        streams: Number of clips.
        chunks: Length of each, in chunks of 28 frames, up to a minute.
        size: Pictures' (H, W).
        seed: Determines the clips.
        program: espeak-ng's path; None for synthetic vowels.
        advance: Called after every clip.

    Raises:
        UserError: The disk is full, or espeak-ng fails.
    """
    picture = size[0] * size[1] * 3
    seconds = min(max(chunks * NEW_FRAMES / FPS, SHORTEST), LONGEST, MAX_CLIP_BYTES / picture / FPS)
    frames = int(seconds * FPS)
    voices = 1 if program is None else len(VOICES["test"])
    settings = drawn_settings(seed=seed, split="test", program=program)
    with tempfile.TemporaryDirectory(prefix="livetalk_") as place:
        folder = Path(place) / "clips"
        check_room(folder, streams * frames * picture)
        writer = ClipWriter(
            folder, Index(size=size, truth=TRUTH, settings={"seconds": frames / FPS, **settings})
        )
        spoken: Counter[str] = Counter()
        indices = count()
        while spoken.total() < streams:
            clip = make_clip(
                seed=seed,
                split="test",
                index=next(indices),
                seconds=frames / FPS,
                size=size,
                program=program,
            )
            voice = str(clip.facts["voice"])
            if spoken[voice] <= spoken.total() // voices:
                writer.enter(writer.store(f"{spoken.total():06d}.safetensors", clip))
                spoken[voice] += 1
                advance()
        writer.write_index(complete=True)
        yield Clips(folder)
