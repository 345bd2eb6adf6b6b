"""Tables of ``livetalk bench``, ``bench comm`` and ``tune``, 80 columns wide."""

from typing import Any

from rich.table import Table

from livetalk_kernels.bench.clocks import remark
from livetalk_kernels.bench.comm import Link
from livetalk_kernels.bench.comm import Row as CommRow
from livetalk_kernels.bench.cuda_timer import LAUNCHES
from livetalk_kernels.bench.report import LEFT_OUT, RED, Result, Row, auto_verdict
from livetalk_kernels.bench.suite import score_of
from livetalk_kernels.bench.tune import Outcome
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.registry import load_backend
from livetalk_kernels.tuning import MachineEntry
from livetalk_kernels.units import data_size, number, percent, prefixed, seconds, time_unit

from .common import console, escape, plural
from .tables import plain_table

_NUMBERS = ("p50", "p20-p80", "trials", "GB/s", "FLOP/s", "% floor", "x eager", "x compile")


def print_result(result: Result, shown: set[str]) -> None:
    """Print a case's table; ``shown`` keeps each reason for a skipped backend from repeating."""
    out = console()
    out.print(_table(result))
    for row in result.rows:
        note = f"{row.backend}: {row.note}"
        if row.state == RED:
            out.print(f"[red]red[/]: {escape(note)}")
        elif row.state == LEFT_OUT and f"{result.case.op} {note}" not in shown:
            shown.add(f"{result.case.op} {note}")
            out.print(f"[yellow]left out[/]: {escape(note)}")
    launched = [row.backend for row in result.rows if row.timing == LAUNCHES]
    if launched:
        out.print(f"[yellow]timed including launches[/]: {', '.join(launched)}; cannot be captured")
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
    table = plain_table(
        f"{case.op} {case.name}: {dims}, {dtype} on {case.device.type}\n"
        f"floor {seconds(result.floor)}: {why}",
        ("backend", *(f">{name}" for name in _NUMBERS)),
    )
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


def print_end(report: dict[str, Any], results: list[Result]) -> None:
    """Print the summary: skipped cases, means over cases, the machine, and the score."""
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
            "*: picked by auto. trials: spread between the fastest and slowest of three medians. "
            "% floor: the floor's time as a share of p50. x: speed-up, median of the rounds' "
            "ratios."
        )
    out.print(_machine_line(where, plural(where["threads"], "thread")))
    score = score_of(results)
    if score is not None:
        out.print(f"[bold]{escape(str(score))}[/]", highlight=False)


def _span(low: float, high: float) -> str:
    """Format a range in the unit of the median."""
    factor, _ = time_unit((low + high) / 2)
    return f"{number(low * factor)}-{number(high * factor)}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _machine_line(where: dict[str, Any], size: str) -> str:
    """GPU, CPU and versions; ``size``: how many cores or threads."""
    gpu = where["gpu"]
    device = f"{gpu['name']}, driver {gpu.get('driver')}, CUDA {gpu['cuda']}; " if gpu else ""
    versions = f"torch {where['torch']}; commit {where['commit'] or 'unknown'}"
    return escape(f"{device}{where['cpu']}, {size}; {versions}")


def print_comm(report: dict[str, Any], rows: list[CommRow], link: Link) -> None:
    """Print a table of the link's best rows and all others, 80 columns wide."""
    settings, out = report["settings"], console()
    height, width = settings["size"]
    table = plain_table(
        f"{settings['preset']} {height}x{width}, {settings['dtype']}, "
        f"{settings['world']} ranks by {settings['engine']}: ulysses {settings['ulysses']} x "
        f"ring {settings['ring']}, VAE {settings['vae_grid']}",
        ("pattern", ">msgs", ">bytes", ">p50", ">p95", ">GB/s", ">link"),
    )
    for row in rows:
        pattern = row.pattern
        is_link = pattern.kind == "link"
        if is_link and row.time and row not in (link.one_way, link.both_ways):
            continue
        cells = ["[red]red[/]"]
        if row.time is not None and row.bandwidth is not None:
            share = link.share(row)
            cells = [
                seconds(row.time.p50),
                seconds(row.time.p95),
                _rate(row.bandwidth / 1e9),
                "-" if share is None else f"{share:.0%}",
            ]
        size = data_size(pattern.bytes)
        table.add_row(pattern.name, str(len(pattern.messages)), size, *cells)
        if row is link.both_ways:
            table.add_section()
    out.print(table)
    for row in rows:
        if row.note:
            out.print(f"[red]red[/]: {escape(f'{row.pattern.name}: {row.note}')}")
    out.print(
        "msgs: over all ranks. bytes: in the busiest direction of the busiest rank; GB/s: rate "
        "at p50. p50, p95: of the slowest rank. link: all pairs of neighbours at once, "
        "at the best of several sizes; for the other rows, the fraction of that rate."
    )
    if link.nominal is not None:
        out.print(f"NVLink, nominal: {number(link.nominal / 1e9)} GB/s one way")
    count = next((row.time.count for row in rows if row.time), 0)
    cores = plural(report["machine"]["cores"], "core")
    out.print(f"{_machine_line(report['machine'], cores)}; {plural(count, 'round')}")


def _rate(value: float) -> str:
    """Format GB/s in a few digits."""
    return f"{value:.3f}" if value < 10 else f"{value:.0f}"


def print_tuning(entry: MachineEntry, outcomes: list[Outcome]) -> None:
    """Print the fastest backends, and what was red or left out."""
    out = console()
    table = plain_table(None, ("op", "~sizes", "fastest", ">p50", ">next"))
    previous, approximate = "", False
    for choice in sorted(entry.choices, key=lambda choice: choice.op):
        best, *others = sorted(choice.p50.values())
        inexact = load_backend(choice.op, choice.backend).approximate
        approximate |= inexact
        table.add_row(
            choice.op if choice.op != previous else "",
            " ".join(f"{letter}={size}" for letter, size in choice.dims.items()),
            choice.backend + (" ~" if inexact else ""),
            seconds(best),
            f"{others[0] / best:.1f}x" if others else "-",
        )
        previous = choice.op
    if entry.choices:
        out.print(table)
        note = " ~: approximate." if approximate else ""
        out.print(f"next: how many times longer the second fastest takes.{note}")
    skipped: dict[str, list[str]] = {}
    for outcome in outcomes:
        where = f"{outcome.call.case.op} {outcome.call.case.name}"
        for backend, reason in outcome.red.items():
            out.print(f"[red]red[/]: {escape(f'{where}, {backend}: {reason}')}")
        if outcome.skipped:
            skipped.setdefault(outcome.skipped, []).append(where)
    for reason, places in skipped.items():
        more = f" and {plural(len(places) - 1, 'more shape')}" if len(places) > 1 else ""
        out.print(f"[yellow]left out[/]: {escape(f'{places[0]}{more}: {reason}')}")
