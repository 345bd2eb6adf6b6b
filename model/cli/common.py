"""Options and output that several commands share."""

import argparse
import contextlib
import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import one_line

from ..config import short_dtype
from . import numbers

if TYPE_CHECKING:
    from fractions import Fraction

    from rich.console import Console

    from ..avatar import Avatar
    from ..loading import ModelSource
    from ..preparation import Preparer
    from ..stream.chunk import StreamOptions

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
COLUMNS = 80
MOST_NAMES = 5  # in a warning
REPLACED = "replaces an existing file; through a link, the file it points to"
"""How every output treats an existing file, for the options' help."""
STDOUT = "-"  # for ``--json``, in place of a file
MAX_SIZE_TEXT = 16  # characters of HxW; what the model can do is said where it is known

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
        description=textwrap.fill(description, COLUMNS - 2),  # as argparse wraps the rest
        epilog=f"example:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_checkpoint_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--checkpoint`` and ``--audio-encoder``."""
    _add_checkpoint_option(parser)
    _add_audio_encoder_option(parser)


def _add_checkpoint_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="published DiT, VAE, T5 and CLIP, or a training run"
    )


def _add_audio_encoder_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--audio-encoder", metavar="DIR", help="folder of wav2vec2 (default: the checkpoint's own)"
    )


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N, or auto: the GPU where there is one (default)",
    )


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--device`` and ``--dtype``."""
    add_device_option(parser)
    add_dtype_option(
        parser,
        ("auto", "fp32", "bf16"),
        default="auto",
        help="dtype of DiT and VAE (or float32, bfloat16); auto: bf16 on a GPU, fp32 on a CPU "
        "(default)",
    )


def add_dtype_option(
    parser: argparse._ActionsContainer, choices: Collection[str], **options: Any
) -> None:
    """Add ``--dtype``, which takes torch's names as well and gives the short ones.

    Args:
        parser: Where to add it.
        choices: Short names, such as ``"fp32"``.
        options: Further arguments of ``add_argument``.
    """
    metavar = f"{{{','.join(choices)}}}"
    parser.add_argument("--dtype", type=short_dtype, choices=choices, metavar=metavar, **options)


def add_model_options(parser: argparse.ArgumentParser, *, audio_encoder: bool = True) -> None:
    """Add the options that select a model and how it runs; ``model_source`` reads them."""
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--preset",
        metavar="NAME",
        help="14b, small, mid, tiny: random weights of that size; demo: trained (default)",
    )
    _add_checkpoint_option(which)
    if audio_encoder:
        _add_audio_encoder_option(group)
    add_device_options(group)
    if audio_encoder:  # what prepares an avatar has no transformer
        group.add_argument(
            "--precision",
            default="exact",
            choices=("exact", "fp8"),
            help="fp8: linear layers of the transformer in FP8, an approximation",
        )
        group.add_argument(
            "--m-major-scales",
            action="store_true",
            help="with fp8, store block scales in the layout that matrix products read; saves "
            "copies on a GPU, where it is untested; frames are unchanged",
        )
        group.add_argument(
            "--cuda-graphs",
            action="store_true",
            help="on a GPU, replay captured steps instead of launching each kernel",
        )
    group.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="[OP=]NAME",
        help="kernel backend for all ops or for one; may be repeated",
    )
    add_config_option(group)
    group.add_argument(
        "--no-reuse",
        action="store_true",
        help="recompute constants in every step, as the published code does (for comparison)",
    )
    group.add_argument(
        "--fuse-bias",
        action="store_true",
        help="fuse the VAE's biases into the following norm or residual; saves passes on a GPU, "
        "where it is untested; frames are unchanged",
    )


def add_avatar_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe an avatar; ``avatar_source`` reads them."""
    group = parser.add_argument_group("avatar")
    text = group.add_mutually_exclusive_group()
    text.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the video shows (default: a person talking to the camera)",
    )
    text.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        help="safetensors with 'context' [L,4096], instead of a prompt; needs no T5",
    )
    group.add_argument(
        "--image-embeds",
        metavar="FILE",
        help="safetensors with 'clip_fea' [1,257,1280], instead of CLIP",
    )
    group.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="picture size in pixels, height first, multiples of 16 (default: the model's)",
    )
    group.add_argument(
        "--crop",
        metavar="PART",
        help="part of the picture to keep: top, centre (default), or x,y,w,h in its pixels",
    )


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the sampler and the frames; ``stream_options`` reads them."""
    group = parser.add_argument_group("stream")
    rate = "frames per second, as 24, 29.97 or 30000/1001 (default: 25, as trained)"
    colours = "0 (off) to 1: keep the portrait's colours (default: 1)"
    for option, kind, metavar, meaning in (
        ("--steps", numbers.STEPS, "N", "denoising steps per chunk (default: 4)"),
        ("--shift", numbers.number(0.001, 1000), "S", "shift of the timesteps (default: 5)"),
        ("--seed", numbers.whole(0, 2**63 - 1), "N", "seed of the noise (default: 9999)"),
        ("--fps", parse_fps, "N", rate),
        ("--color-correction", numbers.number(0, 1), "S", colours),
    ):
        group.add_argument(
            option, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=meaning
        )


def add_config_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--config``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="file written by 'livetalk tune': backends for ops that --backend does not name "
        "(default: LIVETALK_CONFIG)",
    )


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HxW``: height and width in pixels.

    Raises:
        argparse.ArgumentTypeError: The text has another form.
    """
    height, cross, width = text.lower().partition("x")
    digits = cross and height.isdecimal() and width.isdecimal()
    if not digits or len(text) > MAX_SIZE_TEXT:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not HxW; write for example 768x448")
    return int(height), int(width)


def parse_fps(text: str) -> "Fraction":
    """Read frames per second.

    Raises:
        argparse.ArgumentTypeError: It is not a frame rate.
    """
    from ..media.frame_rate import frame_rate

    try:
        return frame_rate(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def model_source(args: argparse.Namespace) -> "ModelSource":
    """Read the options of ``add_model_options``.

    Raises:
        UserError: The choice is impossible.
    """
    from livetalk_kernels import KernelConfig

    from ..loading import ModelSource, use_device

    return ModelSource.find(
        preset=args.preset,
        checkpoint=args.checkpoint,
        audio_encoder=getattr(args, "audio_encoder", None),
        device=str(use_device(args.device)),
        dtype=args.dtype,
        precision=getattr(args, "precision", "exact"),
        backend=KernelConfig.from_sources(args.backend, tuning=args.config),
        reuse=not args.no_reuse,
        fuse_bias=args.fuse_bias,
        m_major_scales=getattr(args, "m_major_scales", False),
        cuda_graphs=getattr(args, "cuda_graphs", False),
    )


def stream_options(args: argparse.Namespace) -> "StreamOptions":
    """Read the options of ``add_stream_options``; those not given keep their defaults.

    Raises:
        UserError: A value is out of range.
    """
    from ..stream.chunk import StreamOptions

    names = {field.name for field in dataclasses.fields(StreamOptions)}
    return StreamOptions(**{name: value for name, value in vars(args).items() if name in names})


def check_file(
    path: Path, suffixes: Collection[str] = (), *, inputs: Iterable[Path | None] = ()
) -> None:
    """Check, before any work is done, that an output can be written; warn about old partial files.

    Args:
        path: The output.
        suffixes: Endings that are understood; any if empty.
        inputs: Files that are read.

    Raises:
        UserError: See `outputs.check_output`.
    """
    from livetalk_kernels.outputs import check_output, old_parts

    check_output(path, suffixes or (path.suffix.lower(),), inputs=inputs)
    left = old_parts(path)
    if left:
        names = ", ".join(map(str, left[:MOST_NAMES])) + (", ..." if left[MOST_NAMES:] else "")
        print(
            f"warning: {names}: left by {plural(len(left), 'run')} killed more than a day ago; "
            "rename what you need and delete the rest",
            file=sys.stderr,
        )


def check_output(args: argparse.Namespace, suffixes: Collection[str]) -> None:
    """Check, before any work is done, that ``args.output`` can be written and is not an input.

    Raises:
        UserError: See `outputs.check_output`.
    """
    names = ("audio", "portrait", "avatar", "prompt_embeds", "image_embeds")
    check_file(args.output, suffixes, inputs=[getattr(args, name, None) for name in names])


class Kept:
    """Holds the error that ended a block of `kept_until_failure`.

    Attributes:
        error: The error, to be raised once the results are written; also None after Ctrl-C.
    """

    error: Exception | None = None


@contextlib.contextmanager
def kept_until_failure() -> Iterator[Kept]:
    """Run a series of measurements so that Ctrl-C or an error keeps the earlier results.

    Yields:
        The outcome, to be checked after the block; the block itself raises nothing.
    """
    kept = Kept()
    try:
        yield kept
    except KeyboardInterrupt:
        pass
    except Exception as error:
        kept.error = error


def avatar_source(args: argparse.Namespace) -> "Callable[[Preparer], Avatar]":
    """Read the avatar's inputs before the model is loaded.

    Args:
        args: With ``portrait`` or ``avatar``, and the options of ``add_avatar_options``.

    Returns:
        Function that makes the avatar once a model is loaded, and prints its warnings.

    Raises:
        UserError: A file or the size is invalid, or options conflict.
    """
    from ..avatar import Avatar, load_embedding
    from ..media.image import load_portrait, parse_crop
    from ..picture_size import check_size
    from ..preparation import check_embeddings

    if getattr(args, "avatar", None) is not None:
        for option in ("prompt", "prompt_embeds", "image_embeds", "size", "crop"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UserError(f"--{name}: needs --portrait; an avatar file fixes it already")
        avatar = Avatar.load(args.avatar)

        def checked(preparer: "Preparer") -> Avatar:
            preparer.check_avatar(avatar, str(args.avatar))
            return avatar

        return checked
    given: dict[str, Any] = {}
    if args.size is not None:
        given["size"] = check_size(args.size)
    if args.prompt is not None:
        given["prompt"] = args.prompt
    context = features = None
    if args.prompt_embeds is not None:
        context = load_embedding(args.prompt_embeds, "context")
    if args.image_embeds is not None:
        features = load_embedding(args.image_embeds, "clip_fea")
    if args.crop is not None:
        given["crop"] = parse_crop(args.crop)
    portrait = load_portrait(args.portrait)
    portrait.check_crop(given.get("crop"))

    def made(preparer: "Preparer") -> Avatar:
        check_embeddings(
            preparer.config,
            context,
            features,
            context_name=f"{args.prompt_embeds}: context",
            features_name=f"{args.image_embeds}: clip_fea",
        )
        avatar = preparer.prepare(portrait, prompt_embeds=context, image_embeds=features, **given)
        warn(avatar.warnings)
        return avatar

    return made


def console(*, stderr: bool = False) -> "Console":
    """Open a console for tables, 80 columns wide unless the output is a terminal."""
    from rich.console import Console

    # Names are no emoji, even with colons around them.
    return Console(stderr=stderr, highlight=False, emoji=False)


def escape(text: object) -> str:
    """Escape a name from a user or a file for a rich console: one line, no markup."""
    from rich.markup import escape

    return escape(one_line(str(text)))


def note(text: str) -> None:
    """Print one line on stderr."""
    print(one_line(text), file=sys.stderr, flush=True)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on stderr, a line each."""
    for warning in warnings:
        note(f"warning: {warning}")


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's number of threads for the duration of a block; None leaves it alone."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def usable_threads() -> Iterator[None]:
    """Limit torch's threads to the CPU quota for the duration of a block.

    Torch itself knows cores and affinity, but no quotas. The user's own choice
    (``OMP_NUM_THREADS``, a command's ``--threads``) stays.
    """
    from livetalk_kernels.machine import cpus

    here = cpus()
    if here.quota is None:  # then torch, which is slow to import, is not asked
        yield
        return
    import torch

    from livetalk_kernels.environment import omp_threads

    own = omp_threads() is not None
    with torch_threads(None if own else min(torch.get_num_threads(), here.usable)):
        yield


def print_json(value: object) -> None:
    """Print a value as JSON."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    print()


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Format a count with its noun: ``1 chunk``, ``2 chunks``; ``nouns`` is an irregular plural."""
    return f"{count} {noun}" if count == 1 else f"{count} {nouns or noun + 's'}"
