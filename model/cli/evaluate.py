"""``livetalk evaluate``: measure how well a model talks, and whether it drifts."""

import argparse
import shlex
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import common, numbers
from .progress import counted

if TYPE_CHECKING:
    from ..train.data.clips import Clips

EXAMPLE = """\
livetalk evaluate --checkpoint runs/student --output student
livetalk evaluate --checkpoint runs/k5 runs/k5-b --against runs/k1 runs/k1-b \\
    --data held-out --chunks 300 --output k5-against-k1"""
CHUNKS, STREAMS = 60, 3
RECORDED = "chunks", "streams", "steps", "seed", "twins", "color_correction"
MAX_CHUNKS = 5000  # an hour and a half; its sound is held in memory
MAX_STREAMS = 100
MAX_TWINS = 1000
ENDINGS = (".json", ".md", ".png")


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "evaluate",
        "Run a model on held-out speech with held-out drawn faces, and measure its pictures: does "
        "the mouth follow the sound, and not just its loudness; are pictures sharp, and colours "
        "and identities preserved; does a stream drift; does it recover from an error in its own "
        "past. Every stream is made with and without colour correction, unless "
        "--color-correction names one. Writes NAME.json, NAME.md and NAME.png.",
        EXAMPLE,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="run of 'livetalk train', or a model folder; with several, of other seeds, intervals "
        "are over the runs",
    )
    which.add_argument(
        "--preset", metavar="NAME", help="that size with random weights (default: tiny)"
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a second model for the same streams; equally many runs",
    )
    parser.add_argument(
        "--audio-encoder",
        type=Path,
        metavar="DIR",
        help="folder of wav2vec2 (default: the run's)",
    )
    common.add_device_options(parser)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="drawn clips, made by 'livetalk dataset --synthetic N --split test'; their sound is "
        "joined voice by voice, and repeats in longer streams (default: draws such clips, of up to "
        "a minute per stream, and removes them at the end)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="NAME",
        help="path without suffix; existing files are replaced",
    )
    for option, kind, default, meaning in (
        ("--chunks", numbers.whole(1, MAX_CHUNKS), CHUNKS, "chunks of 1.12 s per stream"),
        ("--streams", numbers.whole(1, MAX_STREAMS), STREAMS, "streams, each with another voice"),
        ("--twins", numbers.whole(0, MAX_TWINS), 8,
         "chunks to make after a disturbance of the stream's past; 0: skip"),
        ("--steps", numbers.STEPS, 4, "denoising steps per chunk"),
        ("--seed", numbers.whole(0, 2**31 - 1), 9999,
         "noise seed of the first stream, and seed of clips drawn without --data"),
    ):  # fmt: skip
        parser.add_argument(
            option, type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--color-correction",
        choices=("on", "off", "both"),
        default="both",
        help="whether to match a stream's colours to the portrait's (default: both ways)",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, make the streams, judge them, write the report.

    Raises:
        UserError: An input is invalid, or a file cannot be written.
    """
    from ..config import NEW_FRAMES
    from ..evaluate.evaluation import CORRECTIONS, Settings, evaluate_runs
    from ..evaluate.files import write_files
    from ..evaluate.models import load_models
    from ..evaluate.report import make_report, without_chunks
    from ..evaluate.scripts import write_scripts
    from ..loading import use_device
    from ..train.faces.mouth import FPS

    files = {ending: Path(f"{args.output}{ending}") for ending in ENDINGS}
    for ending, file in files.items():
        common.check_file(file, (ending,))
    given = None if args.data is None else _given_clips(args.data)
    both, named = tuple(CORRECTIONS), args.color_correction
    settings = Settings(
        seed=args.seed,
        steps=args.steps,
        twins=args.twins,
        corrections=both if named == "both" else (named,),
    )
    models = load_models(
        args.checkpoint or [],
        args.against or [],
        preset=args.preset,
        audio_encoder=args.audio_encoder,
        device=str(use_device(args.device)),
        dtype=args.dtype,
    )
    with ExitStack() as place:
        clips = given or place.enter_context(
            _drawn_clips(args, models["this"][0].pipeline.preparer.size)
        )
        scripts = write_scripts(clips, streams=args.streams, chunks=args.chunks)
        total = sum(map(len, models.values())) * settings.work(scripts)
        begin = time.perf_counter()
        with counted(total, "chunk") as advance:
            judged = {
                name: evaluate_runs(runs, scripts, clips.index.size, settings, advance)
                for name, runs in models.items()
            }
        report = make_report(models, judged, clips, drawn=given is None)
    report |= {
        "command": shlex.join(["livetalk", *args.argv]),
        "settings": {name: getattr(args, name) for name in RECORDED}
        | {"seconds": args.chunks * NEW_FRAMES / FPS},
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_files(report, **{ending.removeprefix("."): file for ending, file in files.items()})
    if args.json:
        common.print_json(without_chunks(report))
    else:
        from .evaluate_tables import print_goals

        print_goals(report, files[".md"])
    return 0


def _given_clips(folder: Path) -> "Clips":
    """Open a folder of clips."""
    from ..picture_size import check_size
    from ..train.data.clips import Clips

    clips = Clips(folder)
    check_size(clips.index.size)
    if clips.index.settings.get("split") == "train":
        common.warn([f"{folder}: training uses these voices and faces; use --split test"])
    return clips


@contextmanager
def _drawn_clips(args: argparse.Namespace, size: tuple[int, int]) -> Iterator["Clips"]:
    """Draw clips, showing progress."""
    from ..evaluate.held_out import held_out_clips
    from ..train.data import voices

    program = voices.find_program()
    if program is None:
        common.note(voices.MADE_UP)
    with ExitStack() as place:
        with counted(args.streams, "clip") as advance:
            drawn = held_out_clips(
                streams=args.streams, chunks=args.chunks, size=size, seed=args.seed,
                program=program, advance=advance,
            )  # fmt: skip
            clips = place.enter_context(drawn)
        yield clips
