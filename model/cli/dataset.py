"""``livetalk dataset``: make clips to train on, drawn or cut from videos."""

import argparse
import time
from pathlib import Path

from livetalk_kernels.units import data_size

from . import common, numbers

EXAMPLE = """\
livetalk dataset --synthetic 256 --size 64x64 --output clips
livetalk dataset --synthetic 32 --size 64x64 --split test --output held-out
livetalk dataset --videos recordings --size 256x256 --crop top --output real"""
MAX_CLIPS = 100_000
SHORTEST, LONGEST = 3, 120  # seconds of a clip
SECONDS = 6.0  # fits five chunks in a row, and a frame outside them


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "dataset",
        "Make clips to train on: drawn faces whose mouths follow synthetic speech, with ground "
        "truth, or videos of people talking. A run that is stopped leaves complete clips, and the "
        "same command resumes it.",
        EXAMPLE,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--synthetic",
        type=numbers.whole(1, MAX_CLIPS),
        metavar="N",
        help="draw N clips; they speak with espeak-ng if installed",
    )
    source.add_argument(
        "--videos",
        type=Path,
        metavar="DIR",
        help="cut the videos in a folder; skips those without sound, and pieces with a moving "
        "background; NAME.txt next to a video is its prompt",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the clips"
    )
    parser.add_argument(
        "--size",
        type=common.parse_size,
        default=(96, 96),
        metavar="HxW",
        help="picture size, height first; multiples of 16 (default: 96x96)",
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
        help="of drawn clips; another one gives other clips (default: 0)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="split of voices, texts and faces to draw from; they share none (default: train)",
    )
    parser.add_argument(
        "--crop",
        metavar="PART",
        help="part of videos to keep: top, centre or x,y,w,h in their pixels (default: centre)",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, make the clips, report."""
    from ..picture_size import check_size
    from ..train.data.clips import Index, check_clip_size
    from ..train.faces.mouth import FPS
    from .dataset_fill import drawn, fill_folder, videos

    size, frames = check_size(args.size), round(args.seconds * FPS)
    check_clip_size(size, frames)
    begin = time.perf_counter()
    make = videos if args.synthetic is None else drawn
    settings, truth, fill = make(args, size, frames)
    index = Index(size=size, truth=truth, settings={"seconds": args.seconds, **settings})
    result = fill_folder(args.output, index, fill)
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
