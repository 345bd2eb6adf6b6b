"""Clips small enough to be trained on in a test."""

from pathlib import Path

from livetalk_model.train.data.clips import Clips, ClipWriter, Index
from livetalk_model.train.data.synthetic import TRUTH, make_clip


def make_clips(folder: Path, *, size: tuple[int, int] = (32, 32), seconds: float = 2) -> Clips:
    """A folder with one drawn clip of made-up speech."""
    writer = ClipWriter(folder, Index(size=size, truth=TRUTH))
    clip = make_clip(seed=0, split="train", index=0, seconds=seconds, size=size, program=None)
    writer.enter(writer.store("000000.safetensors", clip))
    writer.write_index(complete=True)
    return Clips(folder)
