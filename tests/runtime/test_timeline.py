"""Ranges: what is recorded, what is left out, what a trace must look like, and what one costs."""

import copy
import json
import threading
import time

import pytest
import torch

from livetalk_kernels.runtime.timeline import MAIN, Timeline, _nest
from livetalk_kernels.testing.trace import overlap_seconds, trace_problems

CPU = torch.device("cpu")


def recorded() -> dict:
    """A trace of two lanes, nested and one after the other."""
    timeline = Timeline(CPU, rank=3, capacity=100)
    with timeline.range("outer"):
        with timeline.range("inner"):
            pass
        with timeline.range("inner"):
            pass
    with timeline.range("next"), timeline.host_range("elsewhere", "beside"):
        time.sleep(0.002)
    return timeline.trace({"command": ["livetalk"], "commit": "abc"})


def spans(trace: dict, name: str) -> list[dict]:
    return [event for event in trace["traceEvents"] if event["name"] == name]


def test_a_trace_says_what_ran_where_and_when():
    trace = json.loads(json.dumps(recorded(), allow_nan=False))
    assert not trace_problems(trace)
    (outer,), inner, (after,) = (spans(trace, name) for name in ("outer", "inner", "next"))
    assert len(inner) == 2 and outer["ts"] <= inner[0]["ts"] and outer["dur"] < after["dur"]
    assert {event["args"]["name"] for event in spans(trace, "thread_name")} == {"main", "beside"}
    assert spans(trace, "process_name")[0]["args"]["name"] == "rank 3"
    assert trace["otherData"]["commit"] == "abc" and trace["otherData"]["ranges_left_out"] == 0
    assert abs(trace["otherData"]["started"] - time.time()) < 60
    assert 0.002 <= overlap_seconds(trace, "next", "elsewhere") < after["dur"] / 1e6 + 1e-9
    assert overlap_seconds(trace, "outer", "inner") == 0  # one lane does one thing at a time


def test_the_newest_are_kept_and_the_others_are_counted():
    timeline = Timeline(CPU, capacity=3)
    for index in range(5):
        with timeline.range(f"stage {index}"):
            pass
    trace = timeline.trace({})
    names = [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert names == ["stage 2", "stage 3", "stage 4"]
    assert trace["otherData"]["ranges_left_out"] == 2


def test_nothing_is_kept_unless_asked_and_time_is_measured_all_the_same():
    timeline = Timeline(CPU)
    with timeline.range("stage") as measured:
        time.sleep(0.01)
    assert 0.01 <= measured.seconds() < 1 and measured.happened
    assert not spans(timeline.trace({}), "stage")


def test_what_failed_is_not_recorded():
    timeline = Timeline(CPU, capacity=9)
    with pytest.raises(ValueError, match="broken"), timeline.range("stage"):
        raise ValueError("broken")
    assert not spans(timeline.trace({}), "stage")


def test_threads_have_lanes_of_their_own():
    timeline = Timeline(CPU, capacity=1000)

    def work(lane: str) -> None:
        for _ in range(500):
            with timeline.range("stage", lane):
                pass

    threads = [threading.Thread(target=work, args=(f"lane {index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace = timeline.trace({})
    assert not trace_problems(trace) and len(spans(trace, "stage")) == 2000


def test_a_range_costs_microseconds():
    """A stage takes a millisecond and more; the bound leaves room for a busy machine."""
    timeline = Timeline(CPU, capacity=1000)
    best = float("inf")
    for _ in range(20):
        begin = time.perf_counter_ns()
        for _ in range(500):
            with timeline.range("stage"):
                pass
        best = min(best, (time.perf_counter_ns() - begin) / 500)
    assert best < 20_000, f"{best:.0f} ns"


# The check of traces ---------------------------------------------------------------------


def broken(change) -> list[str]:
    trace = copy.deepcopy(recorded())
    change(trace["traceEvents"])
    return trace_problems(trace)


def add(**event) -> object:
    return lambda events: events.append({"name": "x", "pid": 4, "tid": 1, "ts": 1e9, **event})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda events: events.clear(), "empty"),
        (add(ph="X", dur=1, name=" "), "no name"),
        (add(ph="?"), "unknown phase"),
        (add(ph="X"), "dur is None"),
        (add(ph="X", dur=-1), "dur is -1"),
        (add(ph="X", dur=1, tid="main"), "tid is 'main'"),
        (add(ph="X", dur=1, pid=0), "pid is 0"),
        (add(ph="X", dur=1, ts=float("nan")), "ts is nan"),
        (add(ph="X", dur=1, ts=0.0), "goes back"),
        (add(ph="B"), "has no end"),
        (add(ph="E"), "without a begin"),
        (add(ph="X", dur=1, tid=77), "without a name"),
        (add(ph="s", id=1), "arrow 1"),
        (add(ph="f", id=1), "arrow 1"),
        (add(ph="s"), "without id"),
        (lambda events: events.pop(0), "process without a name"),
    ],
)
def test_what_is_wrong_with_a_trace_is_found(change, named):
    problems = broken(change)
    assert problems and named in problems[0], problems


def test_spans_that_overlap_on_one_lane_are_found():
    def overlap(events: list[dict]) -> None:
        add(ph="X", dur=2)(events)
        add(ph="X", dur=2, ts=1e9 + 1)(events)

    assert "overlaps" in broken(overlap)[0]


def test_begins_and_ends_and_arrows_that_fit_are_fine():
    def fine(events: list[dict]) -> None:
        for event in ({"ph": "B"}, {"ph": "B", "name": "y"}, {"ph": "s", "id": 1},
                      {"ph": "E", "name": "y"}, {"ph": "E"}, {"ph": "f", "id": 1, "ts": 2e9},
                      {"ph": "t", "id": 1, "ts": 1.5e9}):  # fmt: skip
            add(**event)(events)

    assert not broken(fine)


def test_a_range_without_a_lane_is_in_that_of_the_range_around_it():
    timeline = Timeline(CPU, capacity=100)
    with timeline.range("outer", "beside"):
        with timeline.range("inner", about={"part": "linears"}):
            pass
        with timeline.range("elsewhere", MAIN):
            pass
    with timeline.range("after"):
        pass
    ranges = timeline.ranges()
    assert [entry.name for entry in ranges["beside"]] == ["outer", "inner"]
    assert [entry.name for entry in ranges[MAIN]] == ["elsewhere", "after"]
    (inner,) = spans(timeline.trace({}), "inner")
    assert inner["args"] == {"part": "linears"}


def test_arrows_lead_from_lane_to_lane_and_are_shown_whole_or_not_at_all():
    timeline = Timeline(CPU, capacity=100)
    with timeline.host_range("send"):
        passed, lost, nowhere = (timeline.flow("frames") for _ in range(3))
    with timeline.host_range("take", "video"):
        passed.arrive("video")
    nowhere.arrive("no such lane")
    assert len(lost.ends) == 1
    trace = timeline.trace({})
    assert not trace_problems(trace)
    start, end = (event for event in trace["traceEvents"] if event["ph"] in "sf")
    (send,), (take,) = spans(trace, "send"), spans(trace, "take")
    assert start["tid"] == send["tid"] and end["tid"] == take["tid"] and start["id"] == end["id"]
    assert send["ts"] <= start["ts"] <= send["ts"] + send["dur"]
    assert take["ts"] <= end["ts"] <= take["ts"] + take["dur"]


def test_a_range_may_end_in_another_thread_than_it_began_in():
    timeline = Timeline(CPU, capacity=100)
    outer = timeline.range("outer", "beside")
    outer.__enter__()
    thread = threading.Thread(target=outer.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert [entry.name for entry in timeline.ranges()["beside"]] == ["outer"]
    with timeline.range("after"):
        pass
    assert [entry.name for entry in timeline.ranges()[MAIN]] == ["after"]


def test_ranges_know_what_they_are_within_and_are_put_there():
    timeline = Timeline(CPU, capacity=100)
    with (
        timeline.range("outer") as outer,
        timeline.range("beside", "lane") as beside,
        timeline.range("inner", MAIN) as inner,
    ):
        pass
    assert inner.parent is outer and outer.parent is None and beside.parent is None
    inner.begin_ns, inner.end_ns = outer.begin_ns - 5, outer.end_ns + 5  # as events may be placed
    _nest([inner, outer])
    assert (inner.begin_ns, inner.end_ns) == (outer.begin_ns, outer.end_ns)


def test_what_was_recorded_can_be_forgotten():
    timeline = Timeline(CPU, capacity=100)
    with timeline.range("stage"):
        timeline.flow("frames")
    timeline.clear()
    assert timeline.ranges() == {MAIN: []}
