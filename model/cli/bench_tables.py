"""What ``livetalk bench`` prints for people: a table per case, 80 columns wide, and the means."""

from typing import Any

from rich import box
from rich.table import Table

from livetalk_kernels.bench.clocks import remark
from livetalk_kernels.bench.cuda_timer import LAUNCHES
from livetalk_kernels.bench.report import LEFT_OUT, RED, Result, Row, auto_verdict
from livetalk_kernels.bench.score import Score
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.units import number, percent, prefixed, seconds, time_unit

from .common import console, escape, plural


def plain_table(title: str | None = None) -> Table:
    """A table with a line under its head alone; columns are the caller's."""
    return Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def print_result(result: Result, told: set[str]) -> None:
    """Print a case's table; why a backend is left out is said once, ``told`` remembers it."""
    out = console()
    out.print(_table(result))
    for row in result.rows:
        note = f"{row.backend}: {row.note}"
        if row.state == RED:
            out.print(f"[red]red[/]: {escape(note)}")
        elif row.state == LEFT_OUT and f"{result.case.op} {note}" not in told:
            told.add(f"{result.case.op} {note}")
            out.print(f"[yellow]left out[/]: {escape(note)}")
    launched = [row.backend for row in result.rows if row.timing == LAUNCHES]
    if launched:
        out.print(f"[yellow]timed with its launches[/]: {', '.join(launched)}; not to be captured")
    if (clocks := remark(*result.clocks)) is not None:
        out.print(f"[yellow]clocks[/]: {escape(clocks)}")
    out.print()


def _table(result: Result) -> Table:
    case, cost = result.case, result.cost
    dims = " ".join(f"{letter}={size}" for letter, size in case.dims.items())
    dtype = dtype_name(case.dtype)
    if result.roofline.bound(cost) == "memory":
        why = f"{cost.bytes / 1e6:.4g} MB at {result.roofline.bandwidth / 1e9:.4g} GB/s"
    else:
        why = f"{cost.flops / 1e9:.4g} GFLOP at {prefixed(result.roofline.rate)}FLOP/s"
    table = Table(
        title=f"{case.op} {case.name}: {dims}, {dtype} on {case.device.type}\n"
        f"floor {seconds(result.floor)}: {why}",
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("backend", no_wrap=True)
    for name in ("p50", "p20-p80", "trials", "GB/s", "FLOP/s", "% floor", "x eager", "x compile"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        if row.state != LEFT_OUT:
            table.add_row(f"{row.backend}{' *' if row.auto else ''}", *_cells(result, row))
    return table


def _cells(result: Result, row: Row) -> list[str]:
    if row.time is None:
        return ["[red]red[/]"]
    rates = {name: value or 0.0 for name, value in result.rates(row).items()}
    return [
        seconds(row.time.p50),
        _span(row.time.p20, row.time.p80),
        "-" if row.trial_spread is None else percent(row.trial_spread).replace(" ", ""),
        number(rates["gb_per_s"]),
        prefixed(1e12 * rates["tflop_per_s"]).strip(),
        percent(rates["of_floor"]).replace(" ", ""),
        _times(row.vs_eager),
        _times(row.vs_compile),
    ]


def print_end(report: dict[str, Any], results: list[Result], score: Score | None) -> None:
    """Print what concerns all cases: those skipped, means over cases, and the machine."""
    out = console()
    for entry in report["skipped"]:
        what = f"{entry['op']} {entry['case']}".rstrip()
        out.print(f"skipped: {escape(what)}: {escape(entry['reason'])}")
    for mean in report["means"]:
        text = f"{mean['backend']}: geometric mean of {mean['cases']} cases: "
        text += f"{mean['vs_eager']:.2f} x eager"
        if mean["vs_compile"] is not None:
            least, where = mean["least_vs_compile"]
            text += f", {mean['vs_compile']:.2f} x compile (least {least:.2f} x, {where})"
        out.print(text)
    where = report["machine"]
    if verdict := auto_verdict(results):
        out.print(escape(verdict), highlight=False)
    if results:
        out.print(
            "* is what auto picks. trials: distance of the fastest and slowest of three medians. "
            "% floor: the floor's time as a share of p50. x: how many times faster, median of the "
            "rounds' ratios."
        )
    gpu = where["gpu"]
    device = f"{gpu['name']}, driver {gpu.get('driver')}, CUDA {gpu['cuda']}; " if gpu else ""
    out.print(
        f"{escape(device)}{escape(where['cpu'])}, {plural(where['threads'], 'thread')}; torch "
        f"{where['torch']}; commit {where['commit'] or 'unknown'}"
    )
    if score is not None:
        out.print(f"[bold]{escape(str(score))}[/]", highlight=False)


def _span(low: float, high: float) -> str:
    """Both in the unit of the median, which is near."""
    factor, _ = time_unit((low + high) / 2)
    return f"{number(low * factor)}-{number(high * factor)}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
