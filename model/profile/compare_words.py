"""A comparison of two profiles in words: cells of a table, sentences, and a page of Markdown."""

import json
import shlex
from typing import Any

from livetalk_kernels.bench.compare import Change
from livetalk_kernels.units import ms, percent_change

from .compare import Comparison, Row

MANY = 4  # changes of one kind; this many or more are counted, not listed
MAX_CHANGED = 20  # lines of differences; the rest is in the JSON
COLUMNS = ("", "A p50", "B p50", "change (interval)", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """Format a row of the table."""
    change = "" if row.change is None else f"{_percent(row.change.ratio)} ({_interval(row.change)})"
    return (row.name, _seconds(row.a), _seconds(row.b), change, row.verdict)


def _seconds(value: float | None) -> str:
    return "" if value is None else ms(value)


def _percent(ratio: float) -> str:
    """Format a ratio as a signed change in per cent: ``+9.8 %``."""
    return f"{percent_change(ratio)} %"


def _interval(change: Change) -> str:
    """Format an interval in per cent: ``+7.1 to +12.6``."""
    return f"{percent_change(change.low)} to {percent_change(change.high)}"


def circumstances(comparison: Comparison) -> list[str]:
    """List what the reader must know first: other hardware, versions or threads."""

    def listed(entries: list[dict[str, Any]]) -> str:
        return ", ".join(f"{e['what']} {_value(e['a'])} -> {_value(e['b'])}" for e in entries)

    lines = []
    if comparison.elsewhere:
        lines.append(
            f"DIFFERENT MACHINES: B was measured on other hardware than A: "
            f"{listed(comparison.elsewhere)}. The times do not isolate the program."
        )
    if comparison.otherwise:
        lines.append(
            f"DIFFERENT ENVIRONMENT: {listed(comparison.otherwise)}. This alone can change times."
        )
    return lines


def sentences(comparison: Comparison) -> list[str]:
    """State the verdict and its statistics."""
    change, rows = comparison.change, comparison.rows
    level = f"{100 * change.level:.4g} %"
    changes = f"{_percent(change.ratio)} ({level} interval: {_interval(change)})"
    if comparison.elsewhere:
        lines = [f"From A's machine to B's a chunk's time changes by {changes}."]
    elif change.verdict == "no change":
        lines = [f"No change in a chunk's time detected: {changes} may be noise."]
    else:
        lines = [f"B is {change.verdict}: a chunk's time changes by {changes}."]
    count = f"{change.count} pairs" if comparison.interleaved else f"{change.count} chunks each"
    lines.append(
        f"With {count} and this noise, a slowdown of {_percent(1 + change.detectable)} or more "
        f"would be detected 19 times in 20. Up to {100 * change.tolerance:.0f} % is not "
        "called a change."
    )
    if len(rows) > 1:
        levels = {f"{100 * row.change.level:.4g} %" for row in rows[1:] if row.change is not None}
        stages = ", ".join(sorted(levels))
        lines.append(
            f"Confidence of the intervals: {level} for the chunk"
            + (f", {stages} for each stage." if stages else ".")
        )
    if not comparison.interleaved:
        lines.append(
            "NOT INTERLEAVED: the two ran at different times. A shared machine drifts by 5 to "
            "20 % within minutes, which this comparison cannot distinguish from a real change. "
            "Compare the commands instead: they run alternately."
        )
    return lines


def changed(comparison: Comparison) -> list[str]:
    """List the differences, one line each."""
    alike: dict[tuple[str, str], list[str]] = {}  # what changed alike, such as all ops' backends
    for entry in comparison.changed:
        group = entry["what"].rpartition(".")[0]
        change = f"{_value(entry['a'])} -> {_value(entry['b'])}"
        alike.setdefault((group, change), []).append(entry["what"])
    lines = []
    for (group, change), names in alike.items():
        if len(names) >= MANY:
            lines.append(f"{group}, {len(names)} entries: {change}")
        else:
            lines += [f"{name}: {change}" for name in names]
    rest = len(lines) - MAX_CHANGED
    if rest > 0:
        lines[MAX_CHANGED:] = [f"and {rest} more difference{'s' * (rest > 1)}, see --json"]
    return lines or ["no setting differs"]


def _value(value: object) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def markdown(report: dict[str, Any], comparison: Comparison) -> str:
    """Format the comparison as Markdown."""
    where = report["machine"]
    lines = ["# Two profiles compared", ""]
    lines += [f"{line}\n" for line in circumstances(comparison)]
    for side, name in zip("AB", comparison.names, strict=True):
        lines.append(f"- {side}: `{name or '(the defaults)'}`")
    lines += ["", "Changed:", "", *(f"- {line}" for line in changed(comparison)), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in comparison.rows]
    lines += ["", *(f"{line}\n" for line in sentences(comparison))]
    commit = where["commit"] or "unknown"
    hardware = where["gpu"]["name"] if where["gpu"] else f"{where['cpu']}, {where['cores']} cores"
    compared = "Measured" if comparison.interleaved else "Compared"
    lines.append(
        f"{compared} on {hardware}, torch {where['torch']}, commit {commit}, "
        f"{where['date']}, with `{shlex.join(report['command'])}`."
    )
    return "\n".join(lines) + "\n"
