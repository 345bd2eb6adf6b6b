"""``livetalk prepare``: turn a portrait and a prompt into an avatar file."""

import argparse
import time
from pathlib import Path

from livetalk_kernels.units import data_size

from . import common, samples

EXAMPLE = """\
livetalk prepare --portrait me.png --output me.avatar \\
    --prompt "A person is talking to the camera."
livetalk prepare --portrait me.png --output me.avatar --size 768x448 \\
    --checkpoint SoulX-FlashTalk-14B"""
SUFFIXES = (".avatar", ".safetensors")


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "prepare",
        "Make an avatar file from a portrait and a prompt: the prompt's embedding and the "
        "portrait's features and latents. Generating from it needs neither T5 nor CLIP and starts "
        "immediately.",
        EXAMPLE,
    )
    samples.add_portrait_option(parser, required=True)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".avatar or .safetensors; " + common.REPLACED,
    )
    common.add_json_option(parser)
    common.add_avatar_options(parser)
    common.add_model_options(parser, audio_encoder=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, load, encode, write."""
    common.check_output(args, SUFFIXES)
    make_avatar = common.avatar_source(args)
    samples.note_foreign(args)
    begin = time.perf_counter()
    preparer = common.model_source(args).load_preparer()
    loaded = time.perf_counter()
    avatar = make_avatar(preparer)
    encoded = time.perf_counter()
    avatar.save(args.output)
    result = {
        "path": str(args.output),
        "bytes": args.output.stat().st_size,
        "size": list(avatar.size),
        "model": avatar.model,
        "prompt": avatar.prompt,
        "note": avatar.note,
        "warnings": list(avatar.warnings),
        "load_seconds": loaded - begin,
        "encode_seconds": encoded - loaded,
    }
    if args.json:
        common.print_json(result)
        return 0
    height, width = avatar.size
    common.console().print(
        f"wrote {common.escape(args.output)}: {height}x{width}, {data_size(result['bytes'])}, "
        f"model {avatar.model}{', ' + avatar.note if avatar.note else ''} "
        f"(load {result['load_seconds']:.1f} s, encode {result['encode_seconds']:.1f} s)",
        soft_wrap=True,
    )
    return 0
