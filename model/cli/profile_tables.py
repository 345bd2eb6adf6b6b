"""Tables of a profile that fit 80 columns."""

from pathlib import Path
from typing import Any

from rich.table import Table

from livetalk_kernels.units import data_size, ms

from ..profile.words import ABOVE, above, hardware_line, op_time, settings_line
from .common import console, escape, plural
from .tables import plain_table

LEAST_SHARE = 0.001
MOST_OPS = 12
MUCH = 0.02  # share of the time spent on recording itself


def print_profile(report: dict[str, Any], folder: Path) -> None:
    """Print a summary; the folder has the full report."""
    out = console()
    out.print(f"[bold]Profile:[/] {escape(settings_line(report))}")
    out.print(escape(hardware_line(report)))
    _print_headline(report)
    out.print(_stages(report))
    if report["summary"]["beside"]:
        out.print(_beside(report))
    if report["ops"]:
        out.print(_ops(report))
        if above(report):
            out.print(ABOVE)
    out.print(f"wrote {escape(folder)}: {', '.join(report['files'])}", soft_wrap=True)
    if not report["complete"]:
        out.print("Stopped early: the report covers the chunks that were finished.")


def _print_headline(report: dict[str, Any]) -> None:
    summary, memory = report["summary"], report["memory"]
    chunk, steps = summary["chunk"], summary["step"]
    out, count = console(), chunk["count"]
    out.print(
        f"{plural(count, 'chunk')} of {summary['frames'] // count} frames: "
        f"{summary['fps']:.2f} frames/s, {summary['realtime_factor']:.2f} x real time"
    )
    out.print(
        f"chunk p50 {ms(chunk['p50'])}, p95 {ms(chunk['p95'])}, "
        f"p99 {ms(chunk['p99'])}" + (f"; step p50 {ms(steps['p50'])}" if steps else "")
    )
    first = report["startup"]["first_frame"]
    out.print(
        f"start-up {'-' if first is None else ms(first)}, underrun {ms(summary['underrun'])}, "
        f"loading {ms(report['load']['total'])}"
    )
    kinds = {"weights": memory["weights"]["total"]} | {
        name: memory[name] for name in ("caches", "activations", "peak")
    }
    known = [f"{name} {data_size(size)}" for name, size in kinds.items() if size is not None]
    out.print(f"memory: {', '.join(known)}")
    tracing = report["tracing"]
    out.print(
        f"recording: {plural(tracing['events'], 'range')}, {tracing['share']:.2%} of the time"
        + ("; --no-ops records stages only" if tracing["share"] > MUCH else "")
    )


def _table(name: str, first: str, *numbers: str) -> Table:
    return plain_table(name, (f"~{first}", *(f">{number}" for number in numbers)))


def _stages(report: dict[str, Any]) -> Table:
    table = _table("Critical path, ms per chunk", "stage", "p50", "p95", "p99", "share")
    for row in report["summary"]["stages"]:
        if row["share"] < LEAST_SHARE:
            continue
        name = f"  {row['part']}" if row["part"] else f"[bold]{escape(row['stage'])}[/]"
        times = (f"{row[p] * 1e3:.1f}" for p in ("p50", "p95", "p99"))
        table.add_row(name, *times, f"{row['share']:.1%}")
    table.add_row("unattributed", "", "", "", f"{report['summary']['unattributed']:.1%}")
    return table


def _beside(report: dict[str, Any]) -> Table:
    table = _table("Concurrently, ms per chunk", "lane: work", "p50", "p95", "p99")
    for row in report["summary"]["beside"]:
        table.add_row(escape(row["name"]), *(f"{row[p] * 1e3:.1f}" for p in ("p50", "p95", "p99")))
    return table


def _ops(report: dict[str, Any]) -> Table:
    name = f"The {MOST_OPS} most expensive ops of {len(report['ops'])}, by time per chunk"
    table = _table(name, "op, in stage", "backend", "calls", "ms", "GFLOP/s", "GB/s", "of floor")
    for row in report["ops"][:MOST_OPS]:
        dims = " ".join(f"{letter}={size}" for letter, size in row["dims"].items() if size != 1)
        table.add_row(
            f"{row['op']}, {escape(row['stage'])}\n[dim]{dims}[/]",
            row["backend"],
            f"{row['calls']:.3g}",
            f"{op_time(row) * 1e3:.1f}",
            f"{row['rate'] / 1e9:.4g}",
            f"{row['bandwidth'] / 1e9:.3g}",
            f"{row['of_floor']:.0%}",
        )
    return table
