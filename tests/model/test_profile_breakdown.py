"""Exclusive times add up, whatever is nested or concurrent."""

import pytest
import torch

from livetalk_kernels.runtime.timeline import Range, Timeline
from livetalk_model.profile.breakdown import (
    ALL,
    GAPS,
    WHOLE,
    beside_rows,
    chunk_times,
    stage_rows,
    summarise,
)

MS = 10**6
LINEAR = {"op": "linear", "part": "linears"}
SEND = {"part": "communication"}


def ranges(*entries: tuple) -> dict[str, list[Range]]:
    """(name, lane, begin, end[, about]) in ms -> what a timeline gives."""
    timeline = Timeline(torch.device("cpu"))
    found: dict[str, list[Range]] = {}
    for name, lane, begin, end, *about in entries:
        entry = Range(name, lane, timeline, about[0] if about else None)
        entry.begin_ns, entry.end_ns = begin * MS, end * MS
        found.setdefault(lane, []).append(entry)
    for kept in found.values():
        kept.sort(key=lambda entry: (entry.begin_ns, -entry.end_ns))
        for index, entry in enumerate(kept):
            around = [e for e in kept[:index] if e.end_ns >= entry.end_ns]
            entry.parent = around[-1] if around else None
    return found


ONE = (
    ("prepare", "main", 0, 10),
    ("chunk", "main", 20, 120),
    ("denoise", "main", 25, 65),
    ("linear", "main", 30, 50, LINEAR),
    ("ring", "main", 40, 45, SEND),
    ("linear", "main", 50, 55, LINEAR),
    ("decode", "main", 70, 100),
    ("write", "main", 100, 110),
    ("wait for the video", "main", 101, 104),
    ("write frames", "video", 90, 130),
    ("within it", "video", 95, 99),
)


def test_parts_stages_and_the_rest_add_up_to_the_chunk():
    (chunk,) = chunk_times(ranges(*ONE))
    assert chunk.seconds == pytest.approx(0.1) and chunk.index == 0
    milliseconds = {
        stage: {part: round(seconds * 1e3) for part, seconds in parts.items()}
        for stage, parts in chunk.stages.items()
    }
    assert milliseconds == {
        "denoise": {"linears": 20, "communication": 5, GAPS: 15},
        "decode": {ALL: 30},
        "write": {"wait for the video": 3, GAPS: 7},
    }
    inside = sum(sum(parts.values()) for parts in chunk.stages.values())
    assert inside + chunk.unattributed == pytest.approx(chunk.seconds)
    assert chunk.steps == pytest.approx((0.04,))
    assert [(call.stage, round(call.seconds * 1e3)) for call in chunk.calls] == [
        ("denoise", 20),
        ("denoise", 5),
    ]


def test_other_lanes_count_what_is_within_the_chunk_once():
    (chunk,) = chunk_times(ranges(*ONE))
    assert {name: round(s * 1e3) for name, s in chunk.beside.items()} == {"video: write frames": 30}
    assert chunk.events == 1 + 7 + 2


def test_a_range_between_two_chunks_belongs_to_none():
    chunks = chunk_times(
        ranges(
            ("chunk", "main", 0, 10),
            ("decode", "main", 1, 9),
            ("elsewhere", "main", 11, 14),
            ("chunk", "main", 15, 25),
            ("decode", "main", 15, 25),
        )
    )
    assert [list(chunk.stages) for chunk in chunks] == [["decode"], ["decode"]]
    assert [round(chunk.unattributed * 1e3) for chunk in chunks] == [2, 0]
    assert [chunk.index for chunk in chunks] == [0, 1]


def test_rows_have_each_stage_before_its_parts_and_shares_of_the_wall():
    chunks = chunk_times(ranges(*ONE))
    rows = stage_rows(chunks, chunks[0].seconds)
    assert [(row["stage"], row["part"]) for row in rows] == [
        ("denoise", WHOLE), ("denoise", "linears"), ("denoise", "communication"), ("denoise", GAPS),
        ("decode", WHOLE),
        ("write", WHOLE), ("write", "wait for the video"), ("write", GAPS),
    ]  # fmt: skip
    assert sum(row["share"] for row in rows if row["part"] == WHOLE) == pytest.approx(0.8)
    (beside,) = beside_rows(chunks)
    assert beside["name"] == "video: write frames" and beside["p95"] == pytest.approx(0.03)


def test_a_stage_that_only_some_chunks_have_counts_as_zero_in_the_others():
    chunks = chunk_times(
        ranges(
            ("chunk", "main", 0, 10),
            ("decode", "main", 0, 4),
            ("chunk", "main", 10, 20),
        )
    )
    (row,) = stage_rows(chunks, 0.02)
    assert row["mean"] == pytest.approx(0.002) and row["share"] == pytest.approx(0.2)


def test_rounded_times_change_nothing_in_what_belongs_where():
    """Events of a GPU are placed by rounded times: a child may seem to begin before its parent."""
    found = ranges(("chunk", "main", 10, 100), ("denoise", "main", 20, 90))
    chunk, stage = found["main"]
    early = Range("linear", "main", Timeline(torch.device("cpu")), LINEAR)
    early.parent, early.begin_ns, early.end_ns = stage, stage.begin_ns - 1, stage.end_ns - 30 * MS
    found["main"] = [chunk, early, stage]
    (times,) = chunk_times(found)
    assert set(times.stages) == {"denoise"}
    assert times.stages["denoise"]["linears"] == pytest.approx(0.04, rel=1e-6)
    assert times.stages["denoise"][GAPS] == pytest.approx(0.03, rel=1e-6)


def test_percentiles():
    brief = summarise([float(n) for n in range(101)])
    assert (brief["p50"], brief["p95"], brief["p99"]) == (50, 95, 99)
    assert (brief["least"], brief["most"], brief["count"]) == (0, 100, 101)
