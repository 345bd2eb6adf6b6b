"""``livetalk train``: train a small model, part by part."""

import argparse
import dataclasses
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk_kernels.errors import UserError

from . import common, numbers, ranks
from .progress import training_progress

if TYPE_CHECKING:
    from ..train.config import History
    from ..train.demo import Kind
    from ..train.loop.place import Place
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
    "vae": "run that has trained it, for teacher, distill",
    "audio_encoder": "run that has trained it, for teacher, distill",
    "teacher": "run that has trained it, for distill",
    "start": "transformer that a teacher begins as: a run, or a published checkpoint with its text "
    "and image encoders (default: a new, small one without prompts)",
}
"""What is there before -> what it is."""
HISTORIES = "generated", "oracle"
MOST_STEPS, MOST_CHUNKS = 10_000_000, 1000
SAMPLE_EVERY = 100
PATIENCE = 600.0
"""Seconds that several ranks have to finish an update and save, after Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command.

    Attributes:
        kind: What to train.
        output: The run's folder.
        data: The clips; None: those that the run was begun with.
        resume: Whether to resume the run.
        steps: Total updates; None: as in the settings.
        config: Settings file.
        chunks: K of a distillation; None: as in the settings.
        history: What precedes its chunk for the teacher; None: as in the settings.
        sample_every: Updates between two pictures.
        vae: Folder of an earlier run.
        audio_encoder: Folder of an earlier run.
        teacher: Folder of an earlier run.
        start: Folder of a transformer to begin with.
        recompute: Keep no activations of blocks.
        copies: How often the parameters are there in full.
    """

    kind: "Kind"
    output: Path
    data: Path | None
    resume: bool
    steps: int | None
    config: Path | None
    chunks: int | None
    history: "History | None"
    sample_every: int
    vae: Path | None
    audio_encoder: Path | None
    teacher: Path | None
    start: Path | None
    recompute: bool
    copies: int

    @property
    def sources(self) -> dict[str, str]:
        """Earlier results, by name."""
        return {name: str(path) for name in SOURCES if (path := getattr(self, name)) is not None}


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
        help="settings in the form of a run's run.toml; omitted ones default to the large model's",
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
        help="how often the transformer's parameters are there in full, each copy shared out over "
        "as many ranks (HSDP): with one per machine, they are gathered within machines "
        "(default: 1)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start ranks where several are asked for; be one of them, or the only one."""
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    about, settings = _what(options)
    settings.check_ranks(args.nproc or 1)
    left = _left(options)
    code = ranks.start_ranks(args, left=left, grace=PATIENCE)
    if code is not None:
        return code
    with ranks.joined_ranks(args, patience=PATIENCE) as joined:
        code = _train(args, options, (about, settings), joined)
        if joined is not None:
            joined.watchdog.code = code
    return code


def _train(
    args: argparse.Namespace,
    options: Options,
    what: "tuple[About, Run]",
    joined: ranks.Joined | None,
) -> int:
    """Begin or continue, train, say what there is; all ranks do it, and the first one says it."""
    from ..train.data.clips import Clips
    from ..train.loop.training import begin_folder, carry_out
    from ..train.trainings import make_training
    from .interrupts import Wish

    about, settings = what
    place = _place(args, options, joined)
    phase = nullcontext if joined is None else joined.watchdog.phase
    with phase("load"):
        training = make_training(about, settings, Clips(about.data), place)
    if place.leads and not options.resume:
        begin_folder(options.output, about)
    begin = time.perf_counter()
    with ExitStack() as stack:
        asked, report = (lambda: False), (lambda progress: None)
        if place.leads:
            wish = Wish("stopping after this update", _left(options))
            asked = stack.enter_context(wish)
            report = stack.enter_context(training_progress())
        files = carry_out(
            settings,
            training,
            options.output,
            sample_every=options.sample_every,
            place=place,
            phase=phase,
            asked=asked,
            report=report,
        )
    if not place.leads:
        return 0
    if not files:
        step = training.state.step
        common.note(f"{options.output}: {step} of {settings.steps} updates; --resume continues")
        return common.INTERRUPTED
    seconds = time.perf_counter() - begin
    if args.json:
        made = {"output": str(options.output), "steps": settings.steps, "seconds": seconds}
        common.print_json(made | {"files": [str(file) for file in files]})
        return 0
    common.console().print(
        f"{common.escape(', '.join(map(str, files)))}: {common.plural(settings.steps, 'update')}, "
        f"{seconds:.0f} s",
        soft_wrap=True,
    )
    return 0


def _left(options: Options) -> str:
    """What a process that is killed leaves behind."""
    return f"{options.output} has its last checkpoint"


def _place(args: argparse.Namespace, options: Options, joined: ranks.Joined | None) -> "Place":
    """Where it runs.

    Raises:
        UserError: There is no such device, or the copies do not fit the ranks.
    """
    from ..loading import use_device
    from ..train.loop.place import Place
    from ..train.loop.shards import make_mesh

    device = use_device(args.device)
    if joined is None:
        if options.copies != 1:
            raise UserError(f"--copies {options.copies}: is for several ranks; use --nproc")
        return Place(device=device, recompute=options.recompute)
    return Place(
        device=device,
        world=joined.world,
        control=joined.control,
        mesh=make_mesh(device, joined.world.size, copies=options.copies),
        recompute=options.recompute,
    )


def _what(options: Options) -> tuple["About", "Run"]:
    """Determine what the run is about, and its settings.

    Raises:
        UserError: Options conflict, or the folder or a file is invalid.
    """
    from ..train.demo import SETTINGS
    from ..train.loop.training import About, read_folder
    from ..train.settings import Run

    if options.resume:
        if options.config is not None:
            raise UserError(f"--config {options.config}: a resumed run has its own settings")
        about, settings = read_folder(options.output)
        if about.kind != options.kind:
            raise UserError(
                f"{options.output}: is a run of 'train {about.kind}'; resume it as that"
            )
        if options.data is not None:
            about = dataclasses.replace(about, data=str(options.data))
        about = dataclasses.replace(about, sources={**about.sources, **options.sources})
    else:
        if options.data is None:
            raise UserError(
                "--data: missing; make clips with 'livetalk dataset --synthetic 256 --output DIR'"
            )
        about = About(kind=options.kind, data=str(options.data), sources=options.sources)
        settings = (
            Run(**SETTINGS[options.kind]) if options.config is None else Run.read(options.config)
        )
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
    for name in ("chunks", "history"):
        value = getattr(options, name)
        if value is None:
            continue
        if options.kind != "distill" or options.resume:
            raise UserError(f"--{name} {value}: is for a new run of 'train distill'")
        method = dataclasses.replace(settings.distillation, **{name: value})
        settings = dataclasses.replace(settings, distillation=method)
    return about, settings
