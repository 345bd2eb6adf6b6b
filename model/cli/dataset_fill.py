"""What ``livetalk dataset`` puts into its folder: clips that it draws, or cuts from videos."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livetalk_kernels.errors import UserError

from ..media.image import parse_crop
from ..train.data import synthetic, voices
from ..train.data.clips import ClipWriter, Index, check_room
from ..train.data.videos import Video, find_videos, read_clips
from ..train.faces.cast import Split
from . import common
from .progress import counted

SEED = 0
_ONLY_DRAWN = ("seed", "split")

Fill = Callable[[ClipWriter], list[str]]
"""Adds the clips that are not there yet; returns what was left out."""


def fill_folder(output: Path, index: Index, fill: Fill) -> dict[str, Any]:
    """Fill a folder; however that ends, the index lists what is there."""
    writer = ClipWriter(output, index)
    before = len(writer.entries)
    complete = False
    try:
        refused = fill(writer)
        if not writer.entries:
            raise UserError(f"{output}: no clip could be made; {refused[-1]}")
        complete = True
    except KeyboardInterrupt:
        common.note(
            f"{output}: {common.plural(len(writer.entries), 'clip')} so far; the same command "
            "resumes"
        )
        raise
    finally:
        if writer.entries:
            writer.write_index(complete=complete)
        else:
            writer.remove()
    height, width = index.size
    frames = sum(entry.frames for entry in writer.entries.values())
    return {
        "output": str(output),
        "clips": len(writer.entries),
        "made": len(writer.entries) - before,
        "frames": frames,
        "bytes": frames * height * width * 3,
        "size": [height, width],
        "settings": dict(index.settings),
        "refused": refused,
    }


def drawn(
    args: argparse.Namespace, size: tuple[int, int], frames: int
) -> tuple[dict[str, Any], tuple[str, ...], Fill]:
    """Prepare drawn clips: return their settings, the names of their truth, and what draws them."""
    if args.crop is not None:
        raise UserError(f"--crop {args.crop}: goes with --videos")
    program = voices.find_program()
    seed: int = args.seed or SEED
    split: Split = args.split or "train"
    names = [f"{number:06d}.safetensors" for number in range(args.synthetic)]

    def fill(writer: ClipWriter) -> list[str]:
        missing = [n for n, name in enumerate(names) if name not in writer.entries]
        check_room(args.output, len(missing) * frames * size[0] * size[1] * 3)
        if program is None:
            common.note(voices.MADE_UP)
        with counted(len(missing), "clip") as advance:
            for number in missing:
                clip = synthetic.make_clip(
                    seed=seed,
                    split=split,
                    index=number,
                    seconds=args.seconds,
                    size=size,
                    program=program,
                )
                writer.enter(writer.store(names[number], clip))
                advance()
        return []

    settings = synthetic.drawn_settings(seed=seed, split=split, program=program)
    return settings, synthetic.TRUTH, fill


def videos(
    args: argparse.Namespace, size: tuple[int, int], frames: int
) -> tuple[dict[str, Any], tuple[str, ...], Fill]:
    """Prepare clips of videos, likewise."""
    for name in _ONLY_DRAWN:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} {getattr(args, name)}: goes with --synthetic")
    crop = None if args.crop is None else parse_crop(args.crop)
    found = find_videos(args.videos)

    def cut(writer: ClipWriter, video: Video) -> list[str]:
        """Add a video's clips; return what was left out."""
        refused, entries = [], []
        try:
            clips = read_clips(video, size=size, frames=frames, crop=crop)
            for number, clip in enumerate(clips):
                if isinstance(clip, str):
                    refused.append(clip)
                else:
                    entries.append(writer.store(video.file(number), clip))
        except UserError as error:
            refused.append(str(error))
        writer.enter(*entries)  # all at once: a run that is stopped restarts with this video
        common.warn(f"{reason}; left out" for reason in refused)
        return refused

    def fill(writer: ClipWriter) -> list[str]:
        done = {entry.facts.get("source") for entry in writer.entries.values()}
        refused = []
        with counted(len(found), "video") as advance:
            for video in found:
                if video.source not in done:
                    refused += cut(writer, video)
                advance()
        return refused

    return {"source": "videos", "crop": args.crop or "centre"}, (), fill
