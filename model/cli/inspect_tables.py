"""Tables of ``livetalk inspect``."""

from collections.abc import Iterable
from itertools import groupby

from livetalk_kernels.gpus import Gpu
from livetalk_kernels.inspection.collect import BACKENDS
from livetalk_kernels.inspection.report import Kernel, Report, faults
from livetalk_kernels.inspection.sass import Code
from livetalk_kernels.inspection.tiles import Ranking

from .common import console, escape, plural
from .tables import plain_table


def print_kernels(report: Report) -> None:
    """Print a row a kernel, and what is wrong with any."""
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


def print_tiles(gpu: Gpu, rankings: list[Ranking]) -> None:
    """Print where our tiles stand in the order of nvMatmulHeuristics."""
    out = console()
    out.print(f"[italic]Tiles as nvMatmulHeuristics ranks them on {escape(gpu.title)}[/]")
    columns = ("~product", "~M x N x K", "~its first", "~ours, and their places")
    table = plain_table(None, columns)
    for one in rankings:
        ours = (f"{name}: {place or 'no'}" for name, place in one.places.items())
        sizes = " x ".join(map(str, one.sizes))
        table.add_row(escape(one.case), sizes, "\n".join(one.best), "\n".join(ours) or "none runs")
    out.print(table)
    out.print("A ranking by a model of the GPU, not measured; no: not among its tiles.")


def _row(kernel: Kernel) -> tuple[str, ...]:
    """Return what two kernels in one row share: they come from one C++ template."""
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
