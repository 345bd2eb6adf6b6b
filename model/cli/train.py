"""``livetalk train``: a small model of one's own, part after part."""

import argparse
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk_kernels.errors import UserError

from . import common, numbers
from .progress import training_progress

if TYPE_CHECKING:
    from ..train.demo import Kind
    from ..train.loop.training import About
    from ..train.settings import Run

EXAMPLE = """\
livetalk train vae --data clips --output runs/vae
livetalk train vae --output runs/vae --resume
livetalk train audio --data clips --output runs/audio
livetalk train teacher --data clips --vae runs/vae \\
    --audio-encoder runs/audio --output runs/teacher
livetalk train distill --data clips --vae runs/vae \\
    --audio-encoder runs/audio --teacher runs/teacher --output runs/student"""
KINDS = "vae", "audio", "teacher", "distill"
SOURCES = {
    "vae": "teacher and distill",
    "audio_encoder": "teacher and distill",
    "teacher": "distill",
}
"""What is trained before -> what builds on it."""
MOST_STEPS = 10_000_000
SAMPLE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was asked for.

    Attributes:
        kind: What is trained.
        output: The run's folder.
        data: The clips; None: those that the run was begun with.
        resume: Go on with the run.
        steps: Updates in all; None: as the settings say.
        config: File of settings.
        sample_every: Updates between two pictures.
        vae: Folder of what was trained before.
        audio_encoder: Likewise.
        teacher: Likewise.
    """

    kind: "Kind"
    output: Path
    data: Path | None
    resume: bool
    steps: int | None
    config: Path | None
    sample_every: int
    vae: Path | None
    audio_encoder: Path | None
    teacher: Path | None

    @property
    def sources(self) -> dict[str, str]:
        """What is there already, by name."""
        return {name: str(path) for name in SOURCES if (path := getattr(self, name)) is not None}


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "train",
        "Train a small model on clips, on a CPU: what codes pictures (vae), what hears "
        "(audio), the transformer (teacher), and the same in four steps, which learns from its "
        "own past (distill). The run's folder has its settings (run.toml), metrics, checkpoints, "
        "pictures (truth above, made below) and at the end the weights, as 'livetalk generate' "
        "reads them. Ctrl-C saves; --resume goes on bit for bit.",
        EXAMPLE,
    )
    parser.add_argument("kind", choices=KINDS, help="what is trained")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="clips, made by 'livetalk dataset'"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the run"
    )
    for name, used in zip(
        SOURCES, ("teacher, distill", "teacher, distill", "distill"), strict=True
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=Path,
            metavar="DIR",
            help=f"run that has trained it; for {used}",
        )
    parser.add_argument("--resume", action="store_true", help="go on with the run of that folder")
    parser.add_argument(
        "--steps",
        type=numbers.whole(1, MOST_STEPS),
        metavar="N",
        help="updates in all (default: the settings')",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings, as a run's run.toml; what it leaves out has the large model's defaults",
    )
    parser.add_argument(
        "--sample-every",
        type=numbers.whole(0, MOST_STEPS),
        default=SAMPLE_EVERY,
        metavar="N",
        help=f"updates between two pictures; 0: none (default: {SAMPLE_EVERY})",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Begin or go on, train, say what there is."""
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    from ..train.data.clips import Clips
    from ..train.loop.training import begin_folder, carry_out
    from ..train.trainings import make_training
    from .interrupts import Wish

    about, settings = _place(options)
    clips = Clips(about.data)
    training = make_training(about, settings, clips)
    if not options.resume:
        begin_folder(options.output, about)
    begin = time.perf_counter()
    stopping = Wish("stopping after this update", f"{options.output} has its last checkpoint")
    with stopping as asked, training_progress() as tell:
        files = carry_out(
            settings,
            training,
            options.output,
            sample_every=options.sample_every,
            asked=asked,
            tell=tell,
        )
    if not files:
        step = training.state.step
        common.note(f"{options.output}: {step} of {settings.steps} updates; --resume goes on")
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


def _place(options: Options) -> tuple["About", "Run"]:
    """What the run is of, and its settings.

    Raises:
        UserError: Options do not go together, or the folder or a file is no good.
    """
    from ..train.demo import SETTINGS
    from ..train.loop.training import About, read_folder
    from ..train.settings import Run

    if options.resume:
        if options.config is not None:
            raise UserError(f"--config {options.config}: a run that is resumed has its settings")
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
    return about, settings
