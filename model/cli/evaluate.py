"""``livetalk evaluate``: measure how well a model talks, and whether it drifts."""

import argparse
import shlex
import time
from pathlib import Path

from livetalk_kernels.errors import UserError

from . import common, numbers
from .progress import counted

EXAMPLE = """\
livetalk evaluate --checkpoint runs/student --data held-out --output student
livetalk evaluate --checkpoint runs/k5 runs/k5-b --against runs/k1 runs/k1-b \\
    --data held-out --chunks 300 --output k5-against-k1"""
CHUNKS, STREAMS = 60, 3
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
        required=True,
        metavar="DIR",
        help="drawn clips, made by 'livetalk dataset --synthetic N --split test'; their sound is "
        "joined voice by voice, and repeats in longer streams",
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
        ("--seed", numbers.whole(0, 2**31 - 1), 9999, "noise seed of the first stream"),
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
    from livetalk_kernels.outputs import new_file, write_json, write_text

    from ..config import NEW_FRAMES
    from ..evaluate.evaluation import CORRECTIONS, Settings, evaluate
    from ..evaluate.markdown import markdown
    from ..evaluate.models import Model
    from ..evaluate.plot import draw
    from ..evaluate.report import make_report, without_chunks
    from ..evaluate.scripts import write_scripts
    from ..loading import use_device
    from ..picture_size import check_size
    from ..train.data.clips import Clips
    from ..train.faces.mouth import FPS

    files = {ending: Path(f"{args.output}{ending}") for ending in ENDINGS}
    for ending, file in files.items():
        common.check_file(file, (ending,))
    clips = Clips(args.data)
    check_size(clips.index.size)
    if clips.index.settings.get("split") == "train":
        common.warn([f"{args.data}: training uses these voices and faces; use --split test"])
    scripts = write_scripts(clips, streams=args.streams, chunks=args.chunks)
    both, named = tuple(CORRECTIONS), args.color_correction
    settings = Settings(
        seed=args.seed,
        steps=args.steps,
        twins=args.twins,
        corrections=both if named == "both" else (named,),
    )
    folders: dict[str, list[Path | None]] = {"this": args.checkpoint or [None]}
    if args.against is not None:
        folders["against"] = args.against
        if len(args.against) != len(folders["this"]):
            raise UserError("--against: give as many runs as with --checkpoint, in the same order")
    device = str(use_device(args.device))
    models = {
        name: [
            Model.load(
                folder,
                preset=args.preset if folder is None else None,
                audio_encoder=args.audio_encoder,
                device=device,
                dtype=args.dtype,
            )
            for folder in runs
        ]
        for name, runs in folders.items()
    }
    total = sum(map(len, models.values())) * settings.work(scripts)
    begin = time.perf_counter()
    with counted(total, "chunk") as advance:
        judged = {
            name: [
                stream
                for number, model in enumerate(runs)
                for stream in evaluate(
                    model, scripts, clips.index.size, settings, advance, run=number
                )
            ]
            for name, runs in models.items()
        }
    report = make_report(models, judged, clips) | {
        "command": shlex.join(["livetalk", *args.argv]),
        "settings": {
            "chunks": args.chunks,
            "streams": args.streams,
            "seconds": args.chunks * NEW_FRAMES / FPS,
            "steps": args.steps,
            "seed": args.seed,
            "twins": args.twins,
            "color_correction": named,
        },
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_json(files[".json"], report, indent=None)
    write_text(files[".md"], markdown(report, files[".png"].name))
    with new_file(files[".png"]) as picture:
        picture.write(draw(report))
    if args.json:
        common.print_json(without_chunks(report))
    else:
        from .evaluate_tables import print_goals

        print_goals(report, files[".md"])
    return 0
