"""The data behind the plots, and their colours."""

import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from livetalk_kernels.runtime.timeline import MAIN
from livetalk_kernels.units import ms, percent

from ..stream.stats import CHUNK
from .words import UNATTRIBUTED

Json = Mapping[str, Any]
Span = tuple[str, str, float, float]
"""Name, part (empty for a stage), start and end in seconds of the timeline."""
Curve = tuple[list[float], list[float]]
"""Times and values."""

_JUST_AFTER = 1e-9  # seconds; trace times are whole nanoseconds


_COLOURS = {
    # stages
    "audio encoder": "#B07AA1",
    "audio K/V": "#D4A6C8",
    "prepare": "#86BCB6",
    "denoise": "#4E79A7",
    "warm decoder": "#FFBE7D",
    "decode": "#F28E2B",
    "colour": "#E15759",
    "to host": "#9C755F",
    "encode": "#59A14F",
    "write": "#FF9DA7",
    UNATTRIBUTED: "#f4f4f4",
    # their parts
    "linears": "#1f6f8b",
    "attention": "#c8553d",
    "cross": "#f28482",
    "norms": "#e9c46a",
    "activations": "#8d6cab",
    "communication": "#3d405b",
    "convolutions": "#81b29a",
    "gaps": "#c9c9c9",
    "all": "#9aa5b1",
}
_SPARE = ("#17becf", "#bcbd22", "#7f7f7f", "#e377c2", "#8c564b", "#2ca02c")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A row of the breakdown.

    Attributes:
        name: Label on its left.
        pieces: Name -> seconds.
        label: Label on its right.
        notes: Lines below it.
        overlapped: Whether it is excluded from sums.
    """

    name: str
    pieces: Mapping[str, float]
    label: str
    notes: Sequence[str] = ()
    overlapped: bool = False


def breakdown_bars(report: Json) -> list[Bar]:
    """Build the chunk, its stages, the unattributed rest, and concurrent work."""
    summary = report["summary"]
    stages = {row["stage"]: row for row in summary["stages"] if not row["part"]}
    rest = median(chunk["unattributed"] for chunk in report["chunks"])
    chunk = summary["chunk"]
    bars = [
        Bar(
            name="chunk",
            pieces={name: row["p50"] for name, row in stages.items()} | {UNATTRIBUTED: rest},
            label=f"{ms(chunk['p50'])} p50",
            notes=[f"p95 {ms(chunk['p95'])}, p99 {ms(chunk['p99'])}, chunks: {chunk['count']}"],
        )
    ]
    for name, row in stages.items():
        parts = [part for part in summary["stages"] if part["stage"] == name and part["part"]]
        said = [f"{part['part']} {_time_and_share(part)}" for part in parts]
        text = "   ".join(entry.replace(" ", "\N{NO-BREAK SPACE}") for entry in said)
        bars.append(
            Bar(
                name=name,
                pieces={part["part"]: part["p50"] for part in parts} or {name: row["p50"]},
                label=_time_and_share(row),
                notes=textwrap.wrap(text, 110, break_long_words=False),
            )
        )
    share = summary["unattributed"]
    label = _time_and_share({"p50": rest, "share": share})
    bars.append(Bar(name=UNATTRIBUTED, pieces={UNATTRIBUTED: rest}, label=label))
    for row in summary["beside"]:
        name, p50 = row["name"], row["p50"]
        bars.append(Bar(name=name, pieces={name: p50}, label=ms(p50), overlapped=True))
    return bars


def _time_and_share(row: Json) -> str:
    return f"{ms(row['p50'])}, {percent(row['share'])}"


def usual_chunks(report: Json) -> Sequence[Json]:
    """Choose the chunk nearest to the median that has a successor, and that; or the only one."""
    chunks: Sequence[Json] = report["chunks"]
    middle = report["summary"]["chunk"]["p50"]
    candidates = range(max(1, len(chunks) - 1))
    first = min(candidates, key=lambda index: abs(chunks[index]["seconds"] - middle))
    return chunks[first : first + 2]


def lane_spans(traces: Sequence[Json], begin: float, end: float) -> dict[str, list[Span]]:
    """Return lane -> spans in an interval: all lanes of the first rank, the others' main ones.

    The ranks' clocks are aligned by the time of day at which each timeline began.

    Args:
        traces: Chrome traces, one per rank.
        begin: Start in seconds of the first rank's timeline.
        end: End, likewise.
    """
    found: dict[str, list[Span]] = {}
    for number, trace in enumerate(traces):
        late = trace["otherData"]["started"] - traces[0]["otherData"]["started"]
        names: dict[int, str] = {}
        ends: dict[int, list[float]] = defaultdict(list)  # of the ranges that are open
        for event in trace["traceEvents"]:
            lane = event["tid"]
            if event["ph"] == "M" and event["name"] == "thread_name":
                names[lane] = event["args"]["name"]
            if event["ph"] != "X" or event["name"] == CHUNK or (number and names[lane] != MAIN):
                continue
            first = event["ts"] / 1e6 + late
            last = first + event["dur"] / 1e6
            around = ends[lane]
            while around and around[-1] <= first + _JUST_AFTER:
                around.pop()
            part = event.get("args", {}).get("part", "") if around else ""
            shown = part or not around
            around.append(last)
            if shown and first < end and last > begin:
                key = f"rank {event['pid'] - 1}: {names[lane]}" if len(traces) > 1 else names[lane]
                span = event["name"], part, max(first, begin), min(last, end)
                found.setdefault(key, []).append(span)
    return found


def telemetry_panels(
    telemetry: Json | None, begin: float, end: float
) -> dict[str, dict[str, list[Curve]]]:
    """Return panel -> quantity -> curves, one per GPU; only what was reported in that interval.

    A panel groups quantities with the same unit, of the host or of the GPUs.
    """
    found: dict[str, dict[str, list[Curve]]] = {}
    if telemetry is None:
        return found
    samples, period = telemetry["samples"], telemetry["period"]
    for column, unit in telemetry["units"].items():
        scale, shown = {"B": (1e-9, "GB"), "B/s": (1e-9, "GB/s")}.get(unit, (1.0, unit))
        points = [
            (t, value * scale)
            for t, value in zip(samples["t"], samples[column], strict=True)
            if value is not None and begin - period <= t <= end + period
        ]
        if unit == "bits" or not points:
            continue
        gpu = re.fullmatch(r"GPU \d+ (.+)", column)
        panel = found.setdefault(f"{'GPU' if gpu else 'host'}, {shown}", {})
        curve = [t for t, _ in points], [value for _, value in points]
        panel.setdefault(gpu[1] if gpu else column, []).append(curve)
    return found


def colour_of(name: str) -> str:
    """Return the colour of a stage or part, as ``#rrggbb``; the same in all plots."""
    return _COLOURS.get(name) or _SPARE[sum(name.encode()) % len(_SPARE)]


def ink_on(colour: str) -> str:
    """Choose black or white, whichever is more legible on a colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else "white"
