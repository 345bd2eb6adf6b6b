"""Where a chunk's time goes: a timeline's ranges as exclusive times of stages and their parts.

The main lane has a range around each chunk, which contains the stages, which contain what the
tracer recorded. A range's exclusive time is its own without that of the ranges within it, so the
times of a chunk add up to its length. Work on other lanes is concurrent and counted separately.

On a GPU a range lasts from when the stream reaches it until its last kernel has ended. If the
stream waits for the next launch within an op, that op's time includes the wait; gaps are the waits
between ops.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from livetalk_kernels.runtime.timeline import MAIN, Range

from ..stream.stats import CHUNK

GAPS = "gaps"
"""Part of a stage not covered by any range within it: launches and glue."""
ALL = "all"
"""The only part of a stage in which nothing was recorded."""
WHOLE = ""
"""Represents all parts of a stage in a table."""

Parts = dict[str, dict[str, float]]  # stage -> part -> seconds
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an op or layer within a stage.

    Attributes:
        stage: The stage.
        about: The tracer's metadata.
        seconds: Duration.
    """

    stage: str
    about: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ChunkTimes:
    """One chunk.

    Attributes:
        index: Its index in the stream.
        begin_ns: Start on the timeline's clock.
        end_ns: End on the timeline's clock.
        stages: Stage -> part -> exclusive seconds on the main lane.
        unattributed: Seconds outside of any stage.
        beside: ``lane: name`` -> seconds on other lanes during the chunk.
        steps: Seconds of each denoising step.
        calls: Calls recorded by the tracer.
        events: Number of ranges recorded.
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
        """Duration."""
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
        ranges: From `Timeline.ranges`.
        step: Name of the stage that is one denoising step.

    Returns:
        The chunks, in order of time.
    """
    inside: dict[int, list[Range]] = {}
    main = ranges.get(MAIN, ())
    chunks = [entry for entry in main if entry.name == CHUNK]
    for entry in main:
        chunk = _outermost(entry)
        if chunk is not entry and chunk.name == CHUNK:
            inside.setdefault(id(chunk), []).append(entry)
    others = {lane: entries for lane, entries in ranges.items() if lane != MAIN}
    return [
        _chunk(index, chunk, inside.get(id(chunk), []), others, step)
        for index, chunk in enumerate(chunks)
    ]


def _outermost(entry: Range) -> Range:
    while entry.parent is not None:
        entry = entry.parent
    return entry


def _chunk(
    index: int,
    chunk: Range,
    inside: Sequence[Range],
    others: Mapping[str, Sequence[Range]],
    step: str,
) -> ChunkTimes:
    exclusive: dict[tuple[str, str], int] = defaultdict(int)
    places: dict[int, tuple[str, str]] = {}  # range -> stage and part

    def place(entry: Range) -> tuple[str, str]:
        if id(entry) not in places:
            assert entry.parent is not None
            if entry.parent is chunk:
                places[id(entry)] = entry.name, WHOLE
            else:
                stage, around = place(entry.parent)
                about = entry.about or {}
                places[id(entry)] = stage, about.get("part") or around or entry.name
        return places[id(entry)]

    stages_ns, steps, calls = 0, [], []
    for entry in inside:
        length = entry.end_ns - entry.begin_ns
        stage, _ = place(entry)
        exclusive[place(entry)] += length
        if entry.parent is chunk:
            stages_ns += length
            if entry.name == step:
                steps.append(length / 1e9)
        else:
            assert entry.parent is not None
            exclusive[place(entry.parent)] -= length
        if entry.about is not None and "op" in entry.about:
            calls.append(Call(stage=stage, about=entry.about, seconds=length / 1e9))
    beside, count = _beside(others, chunk.begin_ns, chunk.end_ns)
    names = dict.fromkeys(stage for stage, _ in exclusive)
    return ChunkTimes(
        index=index,
        begin_ns=chunk.begin_ns,
        end_ns=chunk.end_ns,
        stages={name: _parts(name, exclusive) for name in names},
        unattributed=(chunk.end_ns - chunk.begin_ns - stages_ns) / 1e9,
        beside=beside,
        steps=tuple(steps),
        calls=tuple(calls),
        events=1 + len(inside) + count,
    )


def _parts(stage: str, exclusive: Mapping[tuple[str, str], int]) -> dict[str, float]:
    parts = {part: ns / 1e9 for (name, part), ns in exclusive.items() if name == stage}
    rest = parts.pop(WHOLE)
    return parts | {GAPS if parts else ALL: rest}


def _beside(
    lanes: Mapping[str, Sequence[Range]], begin: int, end: int
) -> tuple[dict[str, float], int]:
    """Sum the seconds of each lane's outer ranges in an interval; count ranges started in it."""
    seconds: dict[str, float] = defaultdict(float)
    count = 0
    for lane, entries in lanes.items():
        for entry in entries:
            count += begin <= entry.begin_ns < end
            shared = min(entry.end_ns, end) - max(entry.begin_ns, begin)
            if entry.parent is None and shared > 0:
                seconds[f"{lane}: {entry.name}"] += shared / 1e9
    return dict(seconds), count


def summarise(values: Sequence[float]) -> dict[str, float]:
    """Summarise samples: count, p50, p95, p99, mean, least, most."""
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
    """Build rows for every stage, each followed by its parts, over the chunks.

    Args:
        chunks: At least one.
        wall: Total seconds, for the fractions.
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
    """Build rows for concurrent work, over the chunks."""
    names = dict.fromkeys(name for chunk in chunks for name in chunk.beside)
    rows = []
    for name in names:
        brief = summarise([chunk.beside.get(name, 0.0) for chunk in chunks])
        rows.append({"name": name, **{key: brief[key] for key in ("p50", "p95", "p99", "mean")}})
    return rows
