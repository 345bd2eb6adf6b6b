"""``livetalk train``: train a small model, part by part."""

import argparse
import dataclasses
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from . import common, numbers, ranks
from .progress import training_progress

if TYPE_CHECKING:
    from ..train.loop.training import About
    from ..train.settings import Run

EXAMPLE = """\
livetalk train vae --data clips --output runs/vae
livetalk train vae --output runs/vae --resume
livetalk train audio --data clips --output runs/audio
livetalk train teacher --data clips --vae runs/vae \\
    --audio-encoder runs/audio --output runs/teacher
livetalk train distill --data clips --vae runs/vae \\
    --audio-encoder runs/audio --teacher runs/teacher --output runs/student
livetalk train teacher --nproc 8 --recompute --config large.toml \\
    --start SoulX-FlashTalk-14B --vae SoulX-FlashTalk-14B \\
    --audio-encoder chinese-wav2vec2-base --data clips --output runs/large"""
KINDS = "vae", "audio", "teacher", "distill"
SOURCES = {
    "vae": "for teacher, distill: run that has trained it, or folder of a published checkpoint",
    "audio_encoder": "for teacher, distill: run that has trained it, or a published folder of "
    "wav2vec2",
    "teacher": "for distill: run that has trained it, or published checkpoint with its text and "
    "image encoders",
    "start": "for teacher: transformer that it begins as, a run or a published checkpoint likewise "
    "(default: a new, small one without prompts)",
}
"""What is there before -> what it is."""
HISTORIES = "generated", "oracle"
MOST_STEPS, MOST_CHUNKS = 10_000_000, 1000
SAMPLE_EVERY = 100
PATIENCE = 600.0
"""Seconds that several ranks have to finish an update and save, after Ctrl-C."""


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "train",
        "Train a model on clips: what codes pictures (vae), what hears (audio), the transformer "
        "(teacher), and the same in four steps, which learns from its own past (distill). Small "
        "ones train on a CPU; a GPU and several ranks take larger ones, untested on a GPU. The "
        "run's folder has its settings (run.toml), metrics (with curves), checkpoints, pictures "
        "(truth above, made below) and at the end the weights, as 'livetalk generate' reads them. "
        "Ctrl-C saves; --resume continues bit for bit, or within rounding on another number of "
        "ranks.",
        EXAMPLE,
    )
    parser.add_argument("kind", choices=KINDS, help="what to train")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="clips, made by 'livetalk dataset'"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the run"
    )
    for name, help_text in SOURCES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR", help=help_text)
    parser.add_argument("--resume", action="store_true", help="resume the run in that folder")
    parser.add_argument(
        "--steps",
        type=numbers.whole(1, MOST_STEPS),
        metavar="N",
        help="total updates (default: the settings')",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings in the form of a run's run.toml; omitted ones default to the training's own "
        "recipe: the small model's, or the paper's where it begins as a large one",
    )
    parser.add_argument(
        "--chunks",
        type=numbers.whole(1, MOST_CHUNKS),
        metavar="K",
        help="for distill: the chunk that learns is drawn from 1 to K, after chunks of the "
        "student's own (default: the settings')",
    )
    parser.add_argument(
        "--history",
        choices=HISTORIES,
        help="for distill: what precedes that chunk for the teacher, the generated chunk that the "
        "student saw, or the oracle, the true one (default: the settings')",
    )
    parser.add_argument(
        "--sample-every",
        type=numbers.whole(0, MOST_STEPS),
        default=SAMPLE_EVERY,
        metavar="N",
        help="updates between two pictures, samples/step-N.png and the curves of metrics.png; "
        f"0: none (default: {SAMPLE_EVERY})",
    )
    common.add_json_option(parser)
    common.add_device_option(parser)
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="compute a block's activations again for its gradients instead of keeping them: "
        "less memory, another forward pass, the same result",
    )
    group = ranks.add_launch_options(parser, "load, update, save")
    group.add_argument(
        "--copies",
        type=numbers.RANKS,
        default=1,
        metavar="N",
        help="groups of ranks, each of which has the whole transformer, a part per rank (HSDP): "
        "with one group per machine, parameters do not cross the network (default: 1)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start ranks where several are asked for; be one of them, or the only one."""
    from ..train.request import Request

    sources = {name: path for name in SOURCES if (path := getattr(args, name)) is not None}
    names = {field.name for field in dataclasses.fields(Request)} - {"sources"}
    request = Request(sources=sources, **{name: getattr(args, name) for name in names})
    about, settings = request.resolve()
    settings.check_ranks(ranks.rank_count(args))
    left = f"{args.output} has its last checkpoint"
    code = ranks.start_ranks(args, left=left, grace=PATIENCE)
    if code is not None:
        return code
    with ranks.joined_ranks(args, patience=PATIENCE) as joined:
        code = _train(args, about, settings, joined, left)
        if joined is not None:
            joined.watchdog.code = code
    return code


def _train(
    args: argparse.Namespace,
    about: "About",
    settings: "Run",
    joined: ranks.Joined | None,
    left: str,
) -> int:
    """Begin or continue, train, say what there is; all ranks do it, and the first one says it."""
    from livetalk_kernels.runtime.comm import LocalCommunicator

    from ..loading import use_device
    from ..train.data.clips import Clips
    from ..train.loop.place import Place
    from ..train.loop.training import begin_folder, carry_out
    from ..train.trainings import make_training
    from .interrupts import Wish

    alone = LocalCommunicator()
    world, control = (alone, alone) if joined is None else (joined.world, joined.control)
    place = Place.of_ranks(
        use_device(args.device), world, control, copies=args.copies, recompute=args.recompute
    )
    phase = nullcontext if joined is None else joined.watchdog.phase
    with phase("load"):
        training = make_training(about, settings, Clips(about.data), place)
    if place.leads and not args.resume:
        begin_folder(args.output, about)
    begin = time.perf_counter()
    with ExitStack() as stack:
        asked, report = (lambda: False), (lambda progress: None)
        if place.leads:
            asked = stack.enter_context(Wish("stopping after this update", left))
            report = stack.enter_context(training_progress())
        files = carry_out(
            settings, training, args.output, sample_every=args.sample_every,
            place=place, phase=phase, asked=asked, report=report,
        )  # fmt: skip
    if not place.leads:
        return 0
    if not files:
        step = training.state.step
        common.note(f"{args.output}: {step} of {settings.steps} updates; --resume continues")
        return common.INTERRUPTED
    seconds = time.perf_counter() - begin
    if args.json:
        made = {"output": str(args.output), "steps": settings.steps, "seconds": seconds}
        common.print_json(made | {"files": [str(file) for file in files]})
        return 0
    common.console().print(
        f"{common.escape(', '.join(map(str, files)))}: {common.plural(settings.steps, 'update')}, "
        f"{seconds:.0f} s",
        soft_wrap=True,
    )
    return 0
