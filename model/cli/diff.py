"""``livetalk diff``: measure where and how far two configurations of a model differ."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from . import common, numbers

if TYPE_CHECKING:
    from ..diff import Configuration, Difference
    from ..pipeline import Pipeline

EXAMPLE = """\
livetalk diff --preset mid --a precision=fp8 --b precision=exact
livetalk diff --preset tiny --a backend=cpu,dtype=bf16 --b backend=reference \\
    --chunks 5 --plot diff.png --output diff.json"""
PRESET = "tiny"


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "diff",
        "Compare two configurations of one model: the error of every layer on equal inputs, of "
        "every step, of the VAE, and of the video. A configuration is a comma-separated list of "
        "KEY=VALUE: precision (exact, fp8), dtype (auto, fp32, bf16), reuse (yes, no), backend, "
        "or OP=BACKEND.",
        EXAMPLE,
    )
    for side, meaning in (("a", "the configuration to judge"), ("b", "the baseline")):
        parser.add_argument(
            f"--{side}",
            default="",
            metavar="CONFIG",
            help=f"{meaning}, such as precision=fp8,backend=triton (default: the model's own "
            "dtype and backends, exact); the two must differ",
        )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--preset",
        metavar="NAME",
        help="14b, small, mid, tiny: random weights of that size; demo: trained (default: tiny)",
    )
    which.add_argument("--checkpoint", metavar="DIR", help="folder of the published DiT and VAE")
    parser.add_argument("--audio-encoder", metavar="DIR", help="folder of wav2vec2")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:N")
    parser.add_argument("--avatar", metavar="FILE", help="made by 'livetalk prepare'")
    parser.add_argument("--size", type=common.parse_size, metavar="HxW", help="picture size")
    parser.add_argument(
        "--chunks",
        type=numbers.CHUNKS,
        default=3,
        metavar="N",
        help="chunks to generate (default: 3)",
    )
    parser.add_argument(
        "--steps", type=numbers.STEPS, default=4, metavar="N", help="denoising steps"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the report as JSON; " + common.REPLACED,
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw a plot: .png or .svg; existing files as with --output",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load both, compare, report.

    Raises:
        UserError: A configuration cannot be had, or a file cannot be written.
    """
    from livetalk_kernels.outputs import write_json

    from ..diff import Configuration, compare
    from ..media.synthetic import speech
    from ..stream.chunk import StreamOptions

    for path, suffixes in ((args.output, (".json",)), (args.plot, (".png", ".svg"))):
        if path is not None:
            common.check_file(path, suffixes, inputs=[args.avatar])
    sides = [Configuration.parse(getattr(args, side), f"--{side}") for side in ("a", "b")]
    _require_difference(args, sides)
    options = StreamOptions(steps=args.steps)
    a, b = (_load(args, side) for side in sides)
    avatar = _avatar(args, b)
    sound = [speech(index) for index in range(args.chunks)]
    difference = compare(a, b, avatar, sound, options)
    report = _report(args, sides, [a, b], difference, avatar.size)
    if args.output is not None:
        write_json(args.output, report)
    if args.plot is not None:
        from .diff_plot import draw

        draw(report, args.plot)
    if args.json:
        common.print_json(report)
    else:
        from .diff_tables import print_difference

        print_difference(report, difference)
    return 0


def _require_difference(args: argparse.Namespace, sides: "list[Configuration]") -> None:
    """Reject two equal configurations, before minutes of work that find no difference.

    Raises:
        UserError: They are equal.
    """
    from ..loading import resolve_dtype, use_device

    device = use_device(args.device)
    a, b = (replace(side, text="", dtype=str(resolve_dtype(side.dtype, device))) for side in sides)
    if a == b:
        texts = " and ".join(side.text for side in sides)
        raise UserError(
            f"--a and --b: the same configuration twice ({texts}); make them differ, for "
            "example --a dtype=bf16 --b dtype=fp32"
        )


def _load(args: argparse.Namespace, side: "Configuration") -> "Pipeline":
    from ..loading import load_pipeline

    return load_pipeline(
        preset=args.preset or (None if args.checkpoint else PRESET),
        checkpoint=args.checkpoint,
        audio_encoder=args.audio_encoder,
        device=args.device,
        dtype=side.dtype,
        precision=side.precision,
        backend=side.backend,
        reuse=side.reuse,
    )


def _avatar(args: argparse.Namespace, pipeline: "Pipeline") -> Any:
    """Load the given avatar, or make one of a smooth picture."""
    from ..avatar import Avatar
    from ..media.synthetic import picture

    if args.avatar is not None:
        if args.size is not None:
            raise UserError("--size: the avatar file fixes it already")
        return Avatar.load(args.avatar)
    size = args.size or pipeline.preparer.size
    return pipeline.prepare(picture(size), size=size)


def _report(
    args: argparse.Namespace,
    sides: "list[Configuration]",
    pipelines: "list[Pipeline]",
    difference: "Difference",
    size: tuple[int, int],
) -> dict[str, Any]:
    from livetalk_kernels.machine import machine
    from livetalk_kernels.precision import dtype_name

    def describe(side: "Configuration", pipeline: "Pipeline") -> dict[str, Any]:
        return {
            "config": side.text,
            "precision": side.precision,
            "dtype": dtype_name(pipeline.dtype),
            "reuse": side.reuse,
            "backends": {part: ops.chosen for part, ops in pipeline.ops.items()},
        }

    return {
        "a": describe(sides[0], pipelines[0]),
        "b": describe(sides[1], pipelines[1]),
        "model": Path(args.checkpoint).name if args.checkpoint else args.preset or PRESET,
        "random_weights": pipelines[0].random,
        "size": list(size),
        "denoising_steps": args.steps,
        **difference.as_dict(),
        "machine": machine(),
    }
