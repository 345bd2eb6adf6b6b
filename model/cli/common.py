"""Options and output that several commands share."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..pipeline import Pipeline

Subparsers = Any  # argparse's own type is private


def add_command(
    subparsers: Subparsers, name: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Add a command's parser, with an example at the end of its help.

    Args:
        subparsers: From ``main``.
        name: Name of the command.
        description: What it does, for the top of its help.
        example: Command lines, one or several.

    Returns:
        The parser, to add options to.
    """
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        description=description,
        epilog=f"example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_checkpoint_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--checkpoint`` and ``--audio-encoder``."""
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="folder of the published DiT, VAE, T5 and CLIP"
    )
    parser.add_argument("--audio-encoder", metavar="DIR", help="folder of wav2vec2")


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--device`` and ``--dtype``."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N, or auto: the GPU where there is one (default)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="of DiT and VAE; auto: bf16 on a GPU, fp32 on a CPU (default)",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add all options that say which model runs, and how; ``load`` reads them."""
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--preset",
        metavar="NAME",
        help="14b, small, mid or tiny: that size with random weights (default: tiny)",
    )
    which.add_argument(
        "--checkpoint", metavar="DIR", help="folder of the published DiT, VAE, T5 and CLIP"
    )
    group.add_argument(
        "--audio-encoder", metavar="DIR", help="folder of wav2vec2; goes with --checkpoint"
    )
    add_device_options(group)
    group.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="[OP=]NAME",
        help="kernel backend for all ops or for one; may be repeated",
    )
    group.add_argument(
        "--no-reuse",
        action="store_true",
        help="compute constants again and again, as the published code does (for comparison)",
    )


def add_size_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--size``; its value is (height, width) or None."""
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="picture size in pixels, height first, multiples of 16 (default: the model's)",
    )


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HxW``.

    Returns:
        Height and width in pixels; both are positive multiples of 16.

    Raises:
        argparse.ArgumentTypeError: They are not, or the text is of another form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW; write for example 768x448")
    size = int(height), int(width)
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels == 0 or pixels % 16:
            near = max(16, round(pixels / 16) * 16)
            raise argparse.ArgumentTypeError(
                f"{text}: the {name} must be a multiple of 16; use {near}"
            )
    return size


def load(args: argparse.Namespace) -> "Pipeline":
    """Load the model that ``add_model_options`` describes.

    Raises:
        UserError: The choice is impossible, or weights are missing or damaged.
    """
    from livetalk_kernels import KernelConfig

    from ..pipeline import load_pipeline

    return load_pipeline(
        preset=args.preset,
        checkpoint=args.checkpoint,
        audio_encoder=args.audio_encoder,
        device=args.device,
        dtype=args.dtype,
        backend=KernelConfig.from_sources(args.backend),
        reuse=not args.no_reuse,
    )


def console(*, stderr: bool = False) -> "Console":
    """Console for tables, 80 columns wide where the output is not a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def print_json(value: object) -> None:
    """Print a value for machines."""
    json.dump(value, sys.stdout, indent=2)
    print()


def human_bytes(count: int) -> str:
    """Bytes for people, in decimal units: ``37.8 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_count(count: int) -> str:
    """A number for people: ``18.9 B``."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
