"""Checks that Chrome and Perfetto will show a trace as intended.

The files follow the "Trace Event Format" (Google, 2016), whoever wrote them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

SPANS = ("X", "B", "E")  # complete; begin and end
FLOWS = ("s", "t", "f")  # an arrow's start, step and end
OTHERS = ("M", "i", "I", "C")  # names, instants, counters

Lane = tuple[Any, Any]  # process, thread


def trace_problems(trace: Mapping[str, Any]) -> list[str]:
    """List what is wrong with a trace; empty if nothing is.

    Every event has a name, a finite time, and a process and thread numbered from 1; spans of a
    lane are in order of time, and either disjoint or nested; each begin has its end; each arrow
    starts before it ends, once, and none is left open; every lane and process with spans is
    named.
    """
    events = trace.get("traceEvents")
    if not isinstance(events, list) or not events:
        return ["traceEvents is not a list, or is empty"]
    problems = list(_bad_events(events))
    if problems:
        return problems  # the following checks read their fields
    lanes: dict[Lane, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] in SPANS:
            lanes[event["pid"], event["tid"]].append(event)
    for lane, spans in lanes.items():
        problems += [f"{lane}: {problem}" for problem in _bad_lane(spans)]
    problems += _unnamed(events, lanes)
    return problems + list(_bad_flows(events))


def _bad_events(events: list[Mapping[str, Any]]) -> Iterator[str]:
    for index, event in enumerate(events):
        kind = event.get("ph")
        if kind not in (*SPANS, *FLOWS, *OTHERS):
            yield f"event {index}: unknown phase {kind!r}"
        if not isinstance(event.get("name"), str) or not event["name"].strip():
            yield f"event {index}: no name"
        for field in ("pid", "tid"):
            if not isinstance(event.get(field), int) or event[field] < 1:
                yield f"event {index}: {field} is {event.get(field)!r}"
        times = [] if kind == "M" else ["ts", "dur"] if kind == "X" else ["ts"]
        for field in times:
            value = event.get(field)
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                yield f"event {index}: {field} is {value!r}"
        if kind in FLOWS and "id" not in event:
            yield f"event {index}: an arrow without id"


def _ns(microseconds: float) -> int:
    """Convert to whole nanoseconds: sums of float microseconds cannot be compared."""
    return round(microseconds * 1000)


def _bad_lane(spans: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield spans that are out of order, overlap without nesting, or do not end."""
    for before, after in pairwise(_ns(span["ts"]) for span in spans):
        if after < before:
            yield f"goes back from {before} to {after} ns"
    open_until: list[int] = []  # ends of the complete spans that are open
    begun: list[str] = []
    for span in spans:
        begin = _ns(span["ts"])
        match span["ph"]:
            case "B":
                begun.append(span["name"])
            case "E" if not begun:
                yield f"'{span['name']}' ends without a begin"
            case "E" if begun.pop() != span["name"]:
                yield f"'{span['name']}' ends before what began within it"
            case "X":
                while open_until and open_until[-1] <= begin:
                    open_until.pop()
                end = begin + _ns(span["dur"])
                if open_until and end > open_until[-1]:
                    yield f"'{span['name']}' at {begin} ns overlaps the end of another span"
                open_until.append(end)
    for name in begun:
        yield f"'{name}' has no end"


def _unnamed(events: list[Mapping[str, Any]], lanes: Mapping[Lane, object]) -> Iterator[str]:
    named = {
        (event["name"], event["pid"], event["tid"] if event["name"] == "thread_name" else None)
        for event in events
        if event["ph"] == "M" and event.get("args", {}).get("name")
    }
    for process, thread in lanes:
        if ("thread_name", process, thread) not in named:
            yield f"{(process, thread)}: a lane without a name"
    for process in {process for process, _ in lanes}:
        if ("process_name", process, None) not in named:
            yield f"{process}: a process without a name"


def _bad_flows(events: list[Mapping[str, Any]]) -> Iterator[str]:
    arrows: dict[Any, list[tuple[int, str]]] = defaultdict(list)
    for event in events:
        if event["ph"] in FLOWS:
            arrows[event["id"]].append((_ns(event["ts"]), event["ph"]))
    for name, points in arrows.items():
        kinds = "".join(kind for _, kind in sorted(points, key=lambda point: point[0]))
        if kinds != "s" + "t" * (len(kinds) - 2) + "f":
            yield f"arrow {name!r}: '{kinds}' where one start, steps and one end are expected"


def overlap_seconds(trace: Mapping[str, Any], one: str, other: str) -> float:
    """Compute how long spans named ``one`` and ``other``, of different lanes, ran concurrently."""
    spans: dict[str, list[tuple[float, float, Lane]]] = {one: [], other: []}
    for event in trace["traceEvents"]:
        if event["ph"] == "X" and event["name"] in spans:
            lane = event["pid"], event["tid"]
            spans[event["name"]].append((event["ts"], event["ts"] + event["dur"], lane))
    return sum(
        max(0.0, min(end, other_end) - max(begin, other_begin)) / 1e6
        for begin, end, lane in spans[one]
        for other_begin, other_end, other_lane in spans[other]
        if lane != other_lane
    )
