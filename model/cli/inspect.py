"""``livetalk inspect``: report what the GPU kernels compile to, without a GPU."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from livetalk_kernels.gpus import GPUS, get_gpu
from livetalk_kernels.inspection.baseline import load, regressions, save
from livetalk_kernels.inspection.collect import BACKENDS, collect
from livetalk_kernels.inspection.report import as_json
from livetalk_kernels.inspection.tiles import INSTALL, OPS, rank

from .common import (
    REPLACED,
    Subparsers,
    add_command,
    add_dtype_option,
    add_json_option,
    check_file,
    console,
    note,
    print_json,
)
from .inspect_tables import print_kernels, print_tiles
from .progress import status_line

EXAMPLE = """\
livetalk inspect chunk_attention add_norm
livetalk inspect --backend triton --compare profiles/data
livetalk inspect fp8_gemm --tiles h800
"""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PLACE = "in a folder: its file inspect_triton<version>.json, for the installed Triton"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = add_command(
        subparsers,
        "inspect",
        "Compile the Triton kernels for Hopper, or for another GPU, at the model's shapes, "
        "disassemble the CUDA kernels, and report registers, shared memory, occupancy, spills, "
        "tensor-core and TMA instructions, barriers, widths of global accesses and compiler "
        "warnings. Needs no GPU. The first run takes minutes; later ones use Triton's cache.",
        EXAMPLE,
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops to inspect (default: all)")
    parser.add_argument(
        "--backend", choices=BACKENDS, help="only this backend's kernels (default: both)"
    )
    add_dtype_option(
        parser,
        DTYPES,
        default="bf16",
        help="of the activations, for the Triton kernels (default: bf16)",
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help=f"compile for another GPU what can run there: {', '.join(GPUS)} (default: a Hopper)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="compile each Triton kernel for one shape only"
    )
    parser.add_argument(
        "--save", metavar="PATH", type=Path, help=f"write the report; {PLACE}; {REPLACED}"
    )
    parser.add_argument(
        "--compare",
        metavar="PATH",
        type=Path,
        help="list regressions against a saved report, and exit with 1 if there are any; kernels "
        "in only one of the two are ignored",
    )
    parser.add_argument(
        "--sass", metavar="DIR", type=Path, help="keep PTX, cubins and disassembly in this folder"
    )
    parser.add_argument(
        "--tiles",
        metavar="GPU",
        help="also rank the tiles of the FP8 linears with nvMatmulHeuristics for that GPU: "
        f"{', '.join(GPUS)}; a ranking, not a measurement; {INSTALL}, under NVIDIA's licence",
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: An op does not exist, a tool is missing, or a file cannot be used.
    """
    if args.save is not None and not args.save.is_dir():
        check_file(args.save)
    # First, to report a missing library before minutes of compiling.
    tiles = None if args.tiles is None else rank(args.ops or OPS, get_gpu(args.tiles))
    with _progress() as progress:
        report = collect(
            args.ops,
            dtype=DTYPES[args.dtype],
            backends=BACKENDS if args.backend is None else (args.backend,),
            quick=args.quick,
            gpu=None if args.gpu is None else get_gpu(args.gpu),
            keep=args.sass,
            progress=progress,
        )
    worse = []
    if args.compare is not None:
        worse = regressions(load(args.compare, report), report)
    if args.json:
        ranked = {} if tiles is None else {"tiles": [asdict(one) for one in tiles]}
        print_json(as_json(report) | {"regressions": worse} | ranked)
    else:
        print_kernels(report)
        if tiles:
            print_tiles(get_gpu(args.tiles), tiles)
    if args.save is not None:
        note(f"wrote {save(report, args.save)}")
    if worse:
        note(f"worse than {args.compare}:")
        for line in worse:
            note(f"  {line}")
        return 1
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    out = console(stderr=True)
    if out.is_interactive:
        with status_line(out) as say:
            yield say
    else:
        yield note
