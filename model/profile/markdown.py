"""``report.md``: a profile for readers, generated from ``report.json``."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from livetalk_kernels.bench.telemetry import THROTTLED, throttle_reasons
from livetalk_kernels.units import data_size, ms, percent

from ..config import NEW_FRAMES
from ..stream.stats import STAGES
from .words import ABOVE, above, hardware_line, op_name, op_time, settings_line

Json = Mapping[str, Any]

_LISTED = 30  # ops
_ON_GPU = (
    " Times are those of the stream: where it waits for a launch within an op, that op's time "
    "holds the wait; gaps are the waits between ops."
)
_PICTURES = {
    "breakdown.png": "where a chunk's time goes, by stage and part",
    "chunks.png": "latency of each chunk",
    "timeline.png": "what ran when, on which lane, with telemetry",
    "roofline.png": "what the ops reach, and what the machine allows",
}
_EVERY_PERCENTILE = ("p50", "p95", "p99")


def report_markdown(report: Json) -> str:
    """Format a report as Markdown, with its pictures embedded by name.

    Args:
        report: As in ``report.json`` (see ``report.schema.json``); only pictures listed in its
            ``files`` are embedded.
    """
    sections = [
        _headline(report),
        _how(report),
        _stages(report),
        _pictures(report, "breakdown.png", "chunks.png", "timeline.png"),
        _beside(report["summary"]["beside"]),
        _ops(report),
        _pictures(report, "roofline.png"),
        _memory(report["memory"]),
        _ranks(report["ranks"]),
        _startup(report),
        _telemetry(report["telemetry"]),
        _open_ends(report),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _headline(report: Json) -> str:
    summary, chunk = report["summary"], report["summary"]["chunk"]
    first = report["startup"]["first_frame"]
    lines = [
        f"**{summary['fps']:.2f} frames/s**, {summary['realtime_factor']:.2f} x real time. "
        f"A chunk takes {ms(chunk['p50'])} (p50), {ms(chunk['p95'])} (p95), {ms(chunk['p99'])} "
        f"(p99) over {_count(chunk['count'], 'chunk')}; the first frame comes after {ms(first)}. "
        f"{percent(summary['unattributed'])} of the wall time is in no stage.",
    ]
    if summary["underrun"] > 0:
        lines.append(
            f"A player at {report['settings']['fps']:g} frames/s would stand still for "
            f"{ms(summary['underrun'])} in all."
        )
    settings = report["settings"]
    if settings["random_weights"]:
        lines.append("**Weights are random**: times do not depend on them, pictures do.")
    if settings["approximate"]:
        lines.append(f"**Approximate**: {', '.join(settings['approximate'])}.")
    if not report["complete"]:
        lines.append("**The run was cut short**: fewer chunks were measured than asked for.")
    return f"# Profile: {settings_line(report)}\n\n" + "\n\n".join(lines)


def _how(report: Json) -> str:
    settings, where = report["settings"], report["machine"]
    length = (
        f"{_count(len(report['chunks']), 'chunk')} of {NEW_FRAMES} frames after "
        f"{_count(len(report['warmup']), 'chunk')} of warm-up, which count nowhere below"
    )
    rows = [
        ("hardware", hardware_line(report)),
        ("CPU", f"{where['cpu']}, {where['cores']} cores, {where['capability']}"),
        ("versions", f"Python {where['python']}, torch {where['torch']}, triton {where['triton']}"),
        ("length", length),
        ("tokens of the transformer", f"{settings['tokens']:,}"),
        ("steps, shift, seed", f"{settings['steps']}, {settings['shift']:g}, {settings['seed']}"),
        ("played at", f"{settings['fps']:g} frames/s"),
        ("colour correction", f"{settings['color_correction']:g}"),
        *((f"backends, {part}", _pairs(ops)) for part, ops in settings["backends"].items()),
    ]
    command = shlex.join(report["command"])
    return f"```\n{command}\n```\n\n" + _table(("", ""), rows)


def _stages(report: Json) -> str:
    summary = report["summary"]
    rows: list[Sequence[str]] = []
    for row in summary["stages"]:
        name = f"\N{EM SPACE}{row['part']}" if row["part"] else row["stage"]
        rows.append((name, *_percentiles(row), percent(row["share"])))
    rows.append(("unattributed", "", "", "", percent(summary["unattributed"])))
    rows.append(("**chunk**", *_percentiles(summary["chunk"]), ""))
    if summary["step"] is not None:
        rows.append(("one denoising step", *_percentiles(summary["step"]), ""))
    return (
        "## Where a chunk's time goes\n\nExclusive times on the critical path: all shares "
        "together are the wall time, as the mean; percentiles need not add up."
        + (_ON_GPU if report["settings"]["device"].startswith("cuda") else "")
        + "\n\n"
        + _table(("stage", *_EVERY_PERCENTILE, "share"), rows)
        + "\n\n"
        + "; ".join(f"{name}: {does}" for name, does in STAGES.items())
        + "."
    )


def _beside(rows: Sequence[Json]) -> str:
    if not rows:
        return ""
    head = ("lane: work", *_EVERY_PERCENTILE)
    return (
        "## Overlapped work\n\nOn other lanes while a chunk is made; in no sum above.\n\n"
        + _table(head, [(row["name"], *_percentiles(row)) for row in rows])
    )


def _ops(report: Json) -> str:
    ops = sorted(report["ops"], key=op_time, reverse=True)
    if not ops:
        return ""
    chunk = report["summary"]["chunk"]["mean"]
    rows = [
        (
            f"{op['stage']}, {op['part']}",
            op_name(op),
            f"{op['calls']:g}",
            ms(op["p50"]),
            percent(op_time(op) / chunk),
            _three(op["rate"] / 1e12),
            _three(op["bandwidth"] / 1e9),
            f"{percent(op['of_floor'])}, {op['bound']}",
        )
        for op in ops[:_LISTED]
    ]
    limits = [
        f"{dtype} {_three(limit['rate'] / 1e12)} TFLOP/s, {_three(limit['bandwidth'] / 1e9)} GB/s"
        for dtype, limit in report["limits"].items()
    ]
    rest = ops[_LISTED:]
    more = f"\n\nAnd {len(rest)} more, {percent(sum(map(op_time, rest)) / chunk)} of a chunk."
    head = ("stage, part", "op", "calls", "p50 of a call", "of a chunk", "TFLOP/s", "GB/s")
    return (
        "## Ops\n\nThe floor is the least time that the limits allow for the FLOPs and bytes of an "
        f"op's own cost model. Limits, measured in the same run: {'; '.join(limits)}."
        + (f" {ABOVE}" if above(report) else "")
        + "\n\n"
        + _table((*head, "of floor, bound by"), rows)
        + (more if rest else "")
    )


def _memory(memory: Json) -> str:
    predicted = memory["predicted"] or {}
    foreseen = {
        **{f"weights, {part}": size for part, size in predicted.get("weights", {}).items()},
        "caches": predicted.get("caches", {}).get("total"),
        "activations": predicted.get("activations"),
        "peak": predicted.get("total"),
    }
    measured = {
        **{f"weights, {part}": size for part, size in memory["weights"].items()},
        **{kind: memory[kind] for kind in ("caches", "activations", "peak", "resident")},
    }
    rows = [
        (kind, *("" if size is None else data_size(size) for size in (is_, foreseen.get(kind))))
        for kind, is_ in measured.items()
    ]
    return (
        "## Memory\n\nThe prediction is that of the formulas, without any measurement; resident is "
        "the whole process on the host.\n\n" + _table(("kind", "measured", "predicted"), rows)
    )


def _ranks(ranks: Sequence[Json]) -> str:
    if len(ranks) < 2:
        return ""
    rows = [
        (
            str(rank["rank"]),
            rank["host"],
            rank["device"],
            *_percentiles(rank["chunk"]),
            _pairs(
                {
                    kind: f"{data_size(sent['bytes'])} in {sent['messages']:g}"
                    for kind, sent in rank["traffic"].items()
                },
                separator=" ",
            ),
            "" if rank["peak_memory"] is None else data_size(rank["peak_memory"]),
        )
        for rank in ranks
    ]
    head = ("rank", "host", "device", *(f"chunk {p}" for p in _EVERY_PERCENTILE))
    return "## Ranks\n\n" + _table((*head, "sent per chunk, messages", "peak memory"), rows)


def _startup(report: Json) -> str:
    load, startup = report["load"], report["startup"]
    rows = [(f"load: {part}", ms(s)) for part, s in load.items() if part != "total"]
    rows.append(("**load**", ms(load["total"])))
    rows += [(f"start: {stage}", ms(s)) for stage, s in startup["stages"].items()]
    rows.append(("**first frame after**", ms(startup["first_frame"])))
    return "## Start-up\n\n" + _table(("", "time"), rows)


def _telemetry(telemetry: Json | None) -> str:
    if telemetry is None:
        return ""
    rows = []
    for column, unit in telemetry["units"].items():
        reported = [value for value in telemetry["samples"][column] if value is not None]
        if unit == "bits":
            rows.append((column, _reasons(reported), "", ""))
        elif reported:
            values = min(reported), sum(reported) / len(reported), max(reported)
            rows.append((column, *(_quantity(value, unit) for value in values)))
        else:
            rows.append((column, "not reported", "", ""))
    count = len(telemetry["samples"]["t"])
    text = f"{_count(count, 'sample')}, one every {telemetry['period']:g} s, warm-up included."
    return f"## Telemetry\n\n{text}\n\n" + _table(("", "least", "mean", "most"), rows)


def _reasons(reported: Sequence[float]) -> str:
    """Say why a GPU was throttled, and for what fraction of the time."""
    if not reported:
        return "not reported"
    counts: dict[str, int] = {}
    for bits in reported:
        for reason in throttle_reasons(int(bits)):
            counts[reason] = counts.get(reason, 0) + 1
    shares = [f"{reason} {percent(count / len(reported))}" for reason, count in counts.items()]
    return ", ".join(shares) or "nothing"


def _open_ends(report: Json) -> str:
    """Report what recording cost, and what was not measured."""
    tracing = report["tracing"]
    cost = (
        f"Recording cost {percent(tracing['share'])} of the wall time: "
        f"{tracing['events']:,} ranges of {tracing['seconds_per_event'] * 1e6:.2g} µs."
    )
    settings, memory, telemetry = report["settings"], report["memory"], report["telemetry"]
    lacking = []
    if not report["ops"]:
        why = " (they run inside a CUDA graph)" if settings["cuda_graphs"] else ""
        why = " (torch.compile fuses them)" if settings["compiled"] else why
        lacking.append(f"the ops within the stages{why}, so what they reach of their floors")
    if memory["activations"] is None:
        lacking.append("memory of activations")
    if telemetry is None:
        lacking.append("telemetry")
    elif settings["device"].startswith("cuda") and not any(
        column.endswith(THROTTLED) for column in telemetry["units"]
    ):
        lacking.append("clocks, power and temperature of the GPU: NVML does not report them")
    if report["summary"]["chunk"]["count"] < 20:
        lacking.append("tails: p95 and p99 of so few chunks are close to the slowest of them")
    if settings["random_weights"]:
        lacking.append("the quality of the video: weights are random")
    items = "\n".join(f"- {entry}" for entry in lacking)
    return f"## What it cost, and what was not measured\n\n{cost}\n\nNot measured:\n\n{items}" if (
        lacking
    ) else f"## What it cost\n\n{cost}"  # fmt: skip


def _pictures(report: Json, *names: str) -> str:
    return "\n\n".join(f"![{_PICTURES[name]}]({name})" for name in names if name in report["files"])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _percentiles(row: Json) -> list[str]:
    return [ms(row[name]) for name in _EVERY_PERCENTILE]


def _pairs(values: Mapping[str, Any], separator: str = "=") -> str:
    return ", ".join(f"{name}{separator}{value}" for name, value in values.items())


def _quantity(value: float, unit: str) -> str:
    if unit == "B":
        return data_size(value)
    return f"{_three(value / 1e9)} GB/s" if unit == "B/s" else f"{_three(value)} {unit}"


def _three(value: float) -> str:
    """Format three digits, or all of a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
