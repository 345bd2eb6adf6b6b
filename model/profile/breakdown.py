"""Where a chunk's time goes: a timeline's ranges as exclusive times of stages and their parts.

On the main lane lies a range around each chunk, in it the stages, in them what the tracer saw. A
range's exclusive time is its own without that of the ranges within it, so the times of a chunk add
up to its length. Work of other lanes runs beside and is counted apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from livetalk_kernels.runtime.timeline import MAIN, Range

from ..stats import CHUNK

GAPS = "gaps"
"""Part of a stage that no range within it accounts for: launches and glue."""
ALL = "all"
"""The only part of a stage within which nothing was recorded."""
WHOLE = ""
"""Stands for all parts of a stage in a table."""

Parts = dict[str, dict[str, float]]  # stage -> part -> seconds
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an op or layer within a stage.

    Attributes:
        stage: The stage.
        about: What the tracer said of it.
        seconds: How long it took.
    """

    stage: str
    about: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ChunkTimes:
    """One chunk.

    Attributes:
        index: Its number in the stream.
        begin_ns: On the timeline's clock.
        end_ns: On the timeline's clock.
        stages: Stage -> part -> exclusive seconds on the main lane.
        unattributed: Seconds that lie in no stage.
        beside: ``lane: name`` -> seconds of other lanes within the chunk's time.
        steps: Seconds of each denoising step.
        calls: What the tracer saw.
        events: Ranges recorded.
    """

    index: int
    begin_ns: int
    end_ns: int
    stages: Parts
    unattributed: float
    beside: dict[str, float]
    steps: tuple[float, ...]
    calls: tuple[Call, ...]
    events: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.begin_ns) / 1e9

    def as_json(self, origin_ns: int) -> Row:
        """See ``report.schema.json``."""
        return {
            "index": self.index,
            "begin": (self.begin_ns - origin_ns) / 1e9,
            "seconds": self.seconds,
            "stages": self.stages,
            "unattributed": self.unattributed,
            "beside": self.beside,
        }


def chunk_times(
    ranges: Mapping[str, Sequence[Range]], *, step: str = "denoise"
) -> list[ChunkTimes]:
    """Read a timeline.

    Args:
        ranges: `Timeline.ranges`.
        step: Name of the stage that is one denoising step.

    Returns:
        The chunks, in the order of time.
    """
    main = ranges.get(MAIN, ())
    bounds = [(r.begin_ns, r.end_ns) for r in main if r.name == CHUNK]
    found, position = [], 0
    others = {lane: entries for lane, entries in ranges.items() if lane != MAIN}
    for index, (begin, end) in enumerate(bounds):
        while position < len(main) and main[position].begin_ns < begin:
            position += 1
        inside = []
        while position < len(main) and main[position].begin_ns < end:
            if main[position].name != CHUNK:
                inside.append(main[position])
            position += 1
        found.append(_chunk(index, begin, end, inside, _beside(others, begin, end), step))
    return found


def _chunk(
    index: int,
    begin: int,
    end: int,
    inside: Sequence[Range],
    beside: tuple[dict[str, float], int],
    step: str,
) -> ChunkTimes:
    exclusive: dict[tuple[str, str], int] = defaultdict(int)
    open_ranges: list[tuple[Range, str, str]] = []  # with stage and part
    stages_ns, steps, calls = 0, [], []
    for entry in inside:
        while open_ranges and open_ranges[-1][0].end_ns <= entry.begin_ns:
            open_ranges.pop()
        length = entry.end_ns - entry.begin_ns
        about = entry.about or {}
        if not open_ranges:
            stage, part = entry.name, WHOLE
            stages_ns += length
            if entry.name == step:
                steps.append(length / 1e9)
        else:
            _, stage, around = open_ranges[-1]
            exclusive[stage, around] -= length
            part = about.get("part") or around or entry.name
        exclusive[stage, part] += length
        if "op" in about:
            calls.append(Call(stage=stage, about=about, seconds=length / 1e9))
        open_ranges.append((entry, stage, part))
    names = dict.fromkeys(stage for stage, _ in exclusive)
    stages = {name: _parts(name, exclusive) for name in names}
    return ChunkTimes(
        index=index,
        begin_ns=begin,
        end_ns=end,
        stages=stages,
        unattributed=(end - begin - stages_ns) / 1e9,
        beside=beside[0],
        steps=tuple(steps),
        calls=tuple(calls),
        events=1 + len(inside) + beside[1],
    )


def _parts(stage: str, exclusive: Mapping[tuple[str, str], int]) -> dict[str, float]:
    parts = {part: ns / 1e9 for (name, part), ns in exclusive.items() if name == stage}
    rest = parts.pop(WHOLE)
    return parts | {GAPS if parts else ALL: rest}


def _beside(
    lanes: Mapping[str, Sequence[Range]], begin: int, end: int
) -> tuple[dict[str, float], int]:
    """Seconds within a time, of the outer ranges of each lane; and how many ranges began in it."""
    seconds: dict[str, float] = defaultdict(float)
    count = 0
    for lane, entries in lanes.items():
        covered = 0  # ns up to which an outer range has been counted
        for entry in entries:
            count += begin <= entry.begin_ns < end
            shared = min(entry.end_ns, end) - max(entry.begin_ns, begin)
            if entry.begin_ns >= covered:
                covered = entry.end_ns
                if shared > 0:
                    seconds[f"{lane}: {entry.name}"] += shared / 1e9
    return dict(seconds), count


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Samples in brief: count, p50, p95, p99, mean, least, most."""
    p50, p95, p99 = (float(np.percentile(values, p)) for p in (50, 95, 99))
    return {
        "count": len(values),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "mean": float(np.mean(values)),
        "least": min(values),
        "most": max(values),
    }


def stage_rows(chunks: Sequence[ChunkTimes], wall: float) -> list[Row]:
    """Every stage, and its parts after it, over the chunks.

    Args:
        chunks: At least one.
        wall: Seconds of all, for the share.
    """
    names = dict.fromkeys(name for chunk in chunks for name in chunk.stages)
    rows = []
    for stage in names:
        parts = dict.fromkeys(part for chunk in chunks for part in chunk.stages.get(stage, {}))
        series = {
            part: [chunk.stages.get(stage, {}).get(part, 0.0) for chunk in chunks] for part in parts
        }
        whole = [sum(values) for values in zip(*series.values(), strict=True)]
        rows.append(_row(stage, WHOLE, whole, wall))
        if set(parts) != {ALL}:
            rows += [_row(stage, part, values, wall) for part, values in series.items()]
    return rows


def _row(stage: str, part: str, values: Sequence[float], wall: float) -> Row:
    brief = summarise(values)
    kept = {name: brief[name] for name in ("p50", "p95", "p99", "mean")}
    return {"stage": stage, "part": part, **kept, "share": sum(values) / wall}


def beside_rows(chunks: Sequence[ChunkTimes]) -> list[Row]:
    """What ran beside, over the chunks."""
    names = dict.fromkeys(name for chunk in chunks for name in chunk.beside)
    rows = []
    for name in names:
        brief = summarise([chunk.beside.get(name, 0.0) for chunk in chunks])
        rows.append({"name": name, **{key: brief[key] for key in ("p50", "p95", "p99", "mean")}})
    return rows
