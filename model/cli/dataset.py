"""``livetalk dataset``: clips to train with, drawn or cut from videos."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.units import data_size

from . import common, numbers
from .progress import counted

if TYPE_CHECKING:
    from ..train.data.clips import ClipWriter, Index
    from ..train.data.videos import Video
    from ..train.faces.cast import Split

EXAMPLE = """\
livetalk dataset --synthetic 256 --size 64x64 --output clips
livetalk dataset --synthetic 32 --size 64x64 --split test --output held-out
livetalk dataset --videos recordings --size 256x256 --crop top --output real"""
MAX_CLIPS = 100_000
SHORTEST, LONGEST = 3, 120  # seconds of a clip
SECONDS = 6.0  # holds five chunks in a row, and a frame outside them
SEED = 0
_ONLY_DRAWN = ("seed", "split")


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "dataset",
        "Make clips to train with: drawn faces whose mouths follow made-up speech, with all that "
        "is true of them, or videos of people who talk. A run that is stopped leaves whole clips, "
        "and the same command goes on.",
        EXAMPLE,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--synthetic",
        type=numbers.whole(1, MAX_CLIPS),
        metavar="N",
        help="draw N clips; they speak with espeak-ng where it is installed",
    )
    source.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="cut the videos of a folder; those without sound are left out, and pieces whose "
        "background moves",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the clips"
    )
    parser.add_argument(
        "--size",
        type=common.parse_size,
        default=(96, 96),
        metavar="HxW",
        help="pictures, height first; multiples of 16 (default: 96x96)",
    )
    parser.add_argument(
        "--seconds",
        type=numbers.number(SHORTEST, LONGEST),
        default=SECONDS,
        metavar="S",
        help=f"length of a clip (default: {SECONDS:g}, enough for five chunks in a row)",
    )
    parser.add_argument(
        "--seed",
        type=numbers.whole(0, 2**31 - 1),
        metavar="N",
        help=f"of drawn clips; another one gives other clips (default: {SEED})",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="whose voices, texts and faces are drawn; none is in both (default: train)",
    )
    parser.add_argument(
        "--crop",
        metavar="PART",
        help="of videos: top, centre or x,y,w,h in their pixels (default: centre)",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, make the clips, say what there is."""
    from ..preparation import check_size
    from ..train.data.clips import Index, check_clip_size
    from ..train.faces.mouth import FPS

    size, frames = check_size(args.size), round(args.seconds * FPS)
    check_clip_size(size, frames)
    begin = time.perf_counter()
    make = _videos if args.synthetic is None else _synthetic
    settings, truth, fill = make(args, size, frames)
    index = Index(size=size, truth=truth, settings={"seconds": args.seconds, **settings})
    result = _fill(args.output, index, fill)
    result["seconds"] = time.perf_counter() - begin
    if args.json:
        common.print_json(result)
        return 0
    common.console().print(
        f"{common.escape(args.output)}: {common.plural(result['clips'], 'clip')}, "
        f"{result['frames'] / FPS:.0f} s, {size[0]}x{size[1]}, "
        f"{data_size(result['bytes'])} "
        f"({result['made']} made in {result['seconds']:.0f} s)",
        soft_wrap=True,
    )
    return 0


Fill = Callable[["ClipWriter"], list[str]]
"""Adds the clips that are not there yet; returns what was left out."""


def _fill(output: Path, index: "Index", fill: Fill) -> dict[str, Any]:
    """Let a folder be filled; whatever ends it, the index says what is there."""
    from ..train.data.clips import ClipWriter

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
            "goes on"
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


def _synthetic(
    args: argparse.Namespace, size: tuple[int, int], frames: int
) -> tuple[dict[str, Any], tuple[str, ...], Fill]:
    """Drawn clips: their settings, what is true of them, and what draws them."""
    from ..train.data.clips import check_room
    from ..train.data.synthetic import TRUTH, make_clip
    from ..train.data.voices import INSTALL, PROGRAM, find_program

    if args.crop is not None:
        raise UserError(f"--crop {args.crop}: goes with --videos")
    program = find_program()
    seed: int = args.seed or SEED
    split: Split = args.split or "train"
    speech = "babble" if program is None else PROGRAM
    names = [f"{number:06d}.safetensors" for number in range(args.synthetic)]

    def fill(writer: "ClipWriter") -> list[str]:
        missing = [n for n, name in enumerate(names) if name not in writer.entries]
        check_room(args.output, len(missing) * frames * size[0] * size[1] * 3)
        if program is None:
            common.note(f"note: {PROGRAM} is not installed, the speech is made up; {INSTALL}")
        with counted(len(missing), "clip") as advance:
            for number in missing:
                clip = make_clip(
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

    settings = {"source": "synthetic", "seed": seed, "split": split, "speech": speech}
    return settings, TRUTH, fill


def _videos(
    args: argparse.Namespace, size: tuple[int, int], frames: int
) -> tuple[dict[str, Any], tuple[str, ...], Fill]:
    """Clips of videos, likewise."""
    from ..media.image import parse_crop
    from ..train.data.videos import find_videos, read_clips

    for name in _ONLY_DRAWN:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} {getattr(args, name)}: goes with --synthetic")
    crop = None if args.crop is None else parse_crop(args.crop)
    videos = find_videos(args.videos)

    def cut(writer: "ClipWriter", video: "Video") -> list[str]:
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
        writer.enter(*entries)  # all at once: a run that is stopped begins with this video again
        common.warn(f"{reason}; left out" for reason in refused)
        return refused

    def fill(writer: "ClipWriter") -> list[str]:
        done = {entry.facts.get("source") for entry in writer.entries.values()}
        refused = []
        with counted(len(videos), "video") as advance:
            for video in videos:
                if video.source not in done:
                    refused += cut(writer, video)
                advance()
        return refused

    return {"source": "videos", "crop": args.crop or "centre"}, (), fill
