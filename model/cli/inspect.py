"""``livetalk inspect``: report what the GPU kernels compile to, without a GPU."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import torch

from livetalk_kernels.gpus import GPUS, Gpu, get_gpu
from livetalk_kernels.inspection.baseline import load, regressions, save
from livetalk_kernels.inspection.collect import BACKENDS, collect
from livetalk_kernels.inspection.report import Kernel, Report, as_json, faults
from livetalk_kernels.inspection.sass import Code
from livetalk_kernels.inspection.tiles import INSTALL, OPS, Ranking, rank

from .common import (
    REPLACED,
    Subparsers,
    add_command,
    add_dtype_option,
    add_json_option,
    check_file,
    console,
    escape,
    note,
    plural,
    print_json,
)
from .progress import status_line
from .tables import plain_table

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
        help="also rank the tiles of the FP8 linears as nvMatmulHeuristics would on that GPU: "
        f"{', '.join(GPUS)}; an order, no measurement; {INSTALL}, under a licence of NVIDIA",
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
    # First: whether the library is there is known before minutes of compiling.
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
        _print(report)
        if tiles:
            _print_tiles(get_gpu(args.tiles), tiles)
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


def _print(report: Report) -> None:
    out = console()
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    title = f"Kernels for {report.target}, {report.dtype}" + (
        f"; {escape(versions)}" if versions else ""
    )
    out.print(f"[italic]{title}[/]")
    numbers = (f">{heading}" for heading in ("regs", "smem", "warps", "MMA", "BAR", "ld/st"))
    table = plain_table(None, ("~kernel", "~shape", *numbers))
    table.padding = 0  # eight columns in 80
    order = sorted(report.kernels, key=lambda kernel: BACKENDS.index(kernel.backend))
    for backend, kernels in groupby(order, key=lambda kernel: kernel.backend):
        table.add_row(f"[bold]{backend}[/]")
        for _, group in groupby(kernels, key=_row):
            table.add_row(*_cells(list(group)))
    out.print(table)
    out.print(
        "smem: KB per block. warps: per SM. MMA: tensor-core instructions in the code. BAR: "
        "CTA-wide barriers in each step of the main loops; +n: loads of a last block after them, "
        "exposed. ld/st: bits of the widest global load and store, or TMA."
    )
    for line in report.notes:
        out.print(escape(line))
    found = [f"{kernel}: {fault}" for kernel in report.kernels for fault in faults(kernel)]
    seconds = sum(kernel.seconds or 0 for kernel in report.kernels)
    count = plural(len(report.kernels), "kernel")
    out.print(f"{count}, {seconds:.0f} s to compile; {plural(len(found), 'fault')}.")
    for line in found:
        out.print(f"  {escape(line)}", style="yellow")


def _print_tiles(gpu: Gpu, rankings: list[Ranking]) -> None:
    out = console()
    out.print(f"[italic]Tiles as nvMatmulHeuristics ranks them on {escape(gpu.title)}[/]")
    columns = ("~product", "~M x N x K", "~its first", "~ours, and their places")
    table = plain_table(None, columns)
    for one in rankings:
        ours = (f"{name}: {place or 'no'}" for name, place in one.places.items())
        sizes = " x ".join(map(str, one.sizes))
        table.add_row(escape(one.case), sizes, "\n".join(one.best), "\n".join(ours) or "none runs")
    out.print(table)
    out.print("An order by a model of the GPU, nothing was measured; no: not among its tiles.")


def _row(kernel: Kernel) -> tuple[str, ...]:
    """What makes two kernels one row: they are of one C++ template."""
    name = kernel.name.partition("<")[0]
    return (kernel.op, name) if kernel.backend == "cuda" else (kernel.op, name, *kernel.cases)


def _cells(kernels: list[Kernel]) -> list[str]:
    first = kernels[0]
    name = first.name.partition("<")[0].removesuffix("_kernel") or first.op
    if not name.startswith(first.op):
        name = f"{first.op}: {name}"
    shape = f"{len(kernels)} versions" if len(kernels) > 1 else ""
    if first.cases:
        more = len(first.cases) - 1
        shape = first.cases[0] + (f" +{more}" if more else "")
    codes = [kernel.code for kernel in kernels if kernel.code is not None]
    if not codes:
        return [escape(name), escape(shape), "[red]fails[/]"]
    load = _least(code.widest_load for code in codes)
    store = _least(code.widest_store for code in codes)
    cores = sorted({core for code in codes for core in code.tensor_cores})
    counts = {core: _range(code.tensor_cores.get(core, 0) for code in codes) for core in cores}
    return [
        escape(name),
        escape(shape),
        _range(code.registers for code in codes),
        _range(round(kernel.shared / 1024) for kernel in kernels),
        _range(kernel.warps for kernel in kernels if kernel.warps is not None),
        "\n".join(f"{core} {count}" for core, count in counts.items()),
        _range(code.barriers for code in codes if code.tensor_cores) + _exposed(codes),
        f"{load}/{store}",
    ]


def _exposed(codes: list[Code]) -> str:
    most = max(code.exposed for code in codes)
    return f" +{most}" if most else ""


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return "-".join(str(value) for value in dict.fromkeys((found[0], found[-1]))) if found else ""


def _least(widths: Iterable[str]) -> str:
    found = set(widths)
    return min((width for width in found if width.isdecimal()), key=int, default="".join(found))
