"""``livetalk prepare``: portrait and prompt in, avatar file out."""

import argparse
import json
import time
from pathlib import Path

from . import common

EXAMPLE = """example:
  livetalk prepare --portrait me.png --prompt "A woman is talking." --output me.avatar
  livetalk prepare --portrait me.png --output me.avatar \\
      --checkpoint SoulX-LiveTalk-14B --audio-encoder wav2vec2-base --size 768x448
"""
SUFFIXES = (".avatar", ".safetensors")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "prepare",
        help="make an avatar file from a portrait and a prompt",
        description="Make an avatar file: the prompt's embedding, the portrait's features and "
        "latents. Generating from it needs neither T5 nor CLIP and starts at once.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--portrait", type=Path, required=True, metavar="FILE", help="a picture")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help=".avatar or .safetensors"
    )
    common.add_avatar_options(parser)
    common.add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, load, encode, write."""
    from ..files import check_output

    check_output(args.output, SUFFIXES)
    source = common.avatar_source(args)
    begin = time.perf_counter()
    pipeline = common.load(args)
    loaded = time.perf_counter()
    avatar = source(pipeline)
    encoded = time.perf_counter()
    args.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    avatar.save(args.output)
    result = {
        "path": str(args.output),
        "bytes": args.output.stat().st_size,
        "size": list(avatar.size),
        "model": avatar.model,
        "prompt": avatar.prompt,
        "note": avatar.note,
        "load_seconds": loaded - begin,
        "encode_seconds": encoded - loaded,
    }
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    height, width = avatar.size
    common.console().print(
        f"wrote {args.output}: {height}x{width}, {result['bytes'] / 2**20:.1f} MiB, "
        f"model {avatar.model}{', ' + avatar.note if avatar.note else ''} "
        f"(load {result['load_seconds']:.1f} s, encode {result['encode_seconds']:.1f} s)",
        soft_wrap=True,
    )
    return 0
