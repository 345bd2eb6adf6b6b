"""Records what ran when, and concurrently with what: named ranges on lanes, shown by Perfetto.

A *lane* runs one thing at a time: the main stream of a GPU, a side stream, a thread. On a CPU a
range is two clock readings. On a GPU it is two events on the current stream; they are read once
they have completed anyway, so that measuring adds no wait, and are placed on the CPU's clock
through one event whose time is known.
"""

import copy
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch

from ..machine import boot_id

MAIN = "main"
"""The lane of everything that was not sent to another one."""
HOST = "host"
"""The lane of the program's own thread, which consumes what the main lane produces."""

_ANCHOR_MS = 1000.0  # CUDA's time between events is float32: exact to 0.1 us for near ones


About = Mapping[str, Any] | None


class Range:
    """A span on the CPU's clock; recorded when its ``with`` block ends without an exception.

    Attributes:
        name: Name of what ran.
        lane: Lane that it ran on.
        about: Further JSON metadata, for the trace.
        parent: Enclosing range on the same lane; None at the top.
        begin_ns: ``time.perf_counter_ns`` at its start.
        end_ns: The same at its end.
    """

    __slots__ = ("_around", "_timeline", "about", "begin_ns", "end_ns", "lane", "name", "parent")

    _around: "list[Range]"  # open ranges of its starting thread, including itself

    def __init__(self, name: str, lane: str, timeline: "Timeline", about: About) -> None:
        """Create a range that has not started."""
        self.name, self.lane, self._timeline, self.about = name, lane, timeline, about
        self.begin_ns = self.end_ns = 0
        self.parent: Range | None = None

    def __enter__(self) -> Self:
        """Start the range."""
        self._around = self._timeline.open_ranges()
        for around in reversed(self._around):
            if around.lane == self.lane:
                self.parent = around
                break
        self._around.append(self)
        if self._timeline.nvtx:
            torch.cuda.nvtx.range_push(self.name)
        self.begin_ns = time.perf_counter_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the range, and record it unless an exception ended it."""
        self.end_ns = time.perf_counter_ns()
        if self._timeline.nvtx:
            torch.cuda.nvtx.range_pop()
        self._around.remove(self)
        if kind is None:
            self._timeline.record(self)

    @property
    def happened(self) -> bool:
        """Whether the times are known without waiting."""
        return True

    def seconds(self) -> float:
        """Return its duration; waits for its end."""
        return (self.end_ns - self.begin_ns) / 1e9

    def place(self, anchor: "Anchor") -> None:
        """Fill in `begin_ns` and `end_ns` of a completed range."""


class DeviceRange(Range):
    """A span of the current CUDA stream."""

    __slots__ = ("_begin", "_end", "_stream")

    _begin: torch.cuda.Event | None
    _end: torch.cuda.Event | None
    _stream: torch.cuda.Stream

    def __enter__(self) -> Self:
        """Record the start event."""
        super().__enter__()
        self._stream = torch.cuda.current_stream(self._timeline.device)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record(self._stream)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record the end event."""
        if kind is None:
            assert self._end is not None
            self._end.record(self._stream)
        super().__exit__(kind, error, trace)

    @property
    def happened(self) -> bool:
        """Whether both events have completed."""
        return self._end is None or self._end.query()

    def seconds(self) -> float:
        """Return its duration; waits for its end event."""
        if self._begin is None or self._end is None:
            return super().seconds()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3

    def place(self, anchor: "Anchor") -> None:
        """Fill in the times from the events, and release those."""
        if self._begin is None or self._end is None:
            return
        self.begin_ns = anchor.place(self._begin)
        self.end_ns = self.begin_ns + round(self._begin.elapsed_time(self._end) * 1e6)
        self._begin = self._end = None


class Anchor:
    """An event whose time on the CPU's clock is known."""

    def __init__(self, device: torch.device) -> None:
        """Record an event and wait for it, once."""
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(torch.cuda.current_stream(device))
        self._event.synchronize()
        self._ns = time.perf_counter_ns()

    def place(self, event: torch.cuda.Event) -> int:
        """Return a completed event's CPU time in ns; it becomes the anchor of later ones.

        The anchor moves along with the stream, since the time between two events loses precision as
        it grows.
        """
        past_ms = self._event.elapsed_time(event)
        ns = self._ns + round(past_ms * 1e6)
        if past_ms > _ANCHOR_MS:
            self._event, self._ns = event, ns
        return ns


class Flow:
    """An arrow from one range to a later one on another lane; shown once both ends are known.

    Attributes:
        name: Name of what is passed.
        ends: (lane, ns) of the start, and of the end once known.
    """

    __slots__ = ("ends", "name")

    def __init__(self, name: str, lane: str) -> None:
        """Start now, within the lane's open range."""
        self.name = name
        self.ends = [(lane, time.perf_counter_ns())]

    def arrive(self, lane: str) -> None:
        """End now, within the lane's open range."""
        self.ends.append((lane, time.perf_counter_ns()))


class _Lane:
    """The newest ranges of a lane, and how many there were in all."""

    def __init__(self, capacity: int) -> None:
        self.ranges: deque[Range] = deque(maxlen=capacity)
        self.count = 0


class Timeline:
    """Records ranges. Each lane is written by one thread at a time; lanes may be concurrent.

    Attributes:
        device: Device that `range` measures on.
        rank: Rank of the process; its process id in the trace is one more, as 0 is special there.
        nvtx: Whether ranges are also shown to NVIDIA's profilers.
        origin_ns: ``time.perf_counter_ns`` at its start; common to all ranks after `align`.
    """

    def __init__(
        self, device: torch.device, *, rank: int = 0, capacity: int = 0, nvtx: bool = False
    ) -> None:
        """Start the clock.

        Args:
            device: Device that `range` measures on: events on its streams, or the CPU's clock.
            rank: Rank of the process.
            capacity: Maximum number of ranges kept per lane, the newest; 0 measures only.
            nvtx: Show ranges to NVIDIA's profilers; needs CUDA.
        """
        self.device, self.rank, self.nvtx = device, rank, nvtx
        self._capacity = capacity
        self._lanes: dict[str, _Lane] = {}
        self._flows: deque[Flow] = deque(maxlen=capacity)
        self._open = threading.local()  # .ranges: of this thread, the innermost last
        self._anchor = Anchor(device) if capacity and device.type == "cuda" else None
        self.origin_ns = time.perf_counter_ns()
        self._started = time.time()

    @property
    def process(self) -> int:
        """Process id in the trace: 0 is special to viewers."""
        return self.rank + 1

    def align(self, gather: Callable[[bytes], list[bytes]]) -> None:
        """Count from where rank 0 started, so that traces of several ranks can be shown together.

        All ranks call it together, before they record. On rank 0's machine the clock is the same;
        on others it is aligned by the time of day.

        Args:
            gather: Takes this rank's bytes and returns those of all ranks, in order.
        """
        own = {"origin_ns": self.origin_ns, "started": self._started, "boot": boot_id()}
        first = json.loads(gather(json.dumps(own).encode())[0])
        if first["boot"] == own["boot"]:
            self.origin_ns = first["origin_ns"]
        else:
            self.origin_ns -= round((self._started - first["started"]) * 1e9)
        self._started = first["started"]

    def range(self, name: str, lane: str | None = None, about: About = None) -> Range:
        """Create a range, for ``with``, measured on the device.

        Args:
            name: Name of what runs; not empty.
            lane: By default that of the enclosing range in this thread, else `MAIN`.
            about: Further JSON metadata; not copied, so it may be shared by many ranges.
        """
        if lane is None:
            around = self.open_ranges()
            lane = around[-1].lane if around else MAIN
        if self.device.type == "cuda":
            return DeviceRange(name, lane, self, about)
        return Range(name, lane, self, about)

    def host_range(self, name: str, lane: str | None = None) -> Range:
        """Create a range, for ``with``, of CPU work, on any device.

        Args:
            name: Name of what runs; not empty.
            lane: By default `HOST`.
        """
        return Range(name, lane or HOST, self, None)

    def flow(self, name: str, lane: str | None = None) -> Flow:
        """Start an arrow now; arguments as in `host_range`."""
        flow = Flow(name, lane or HOST)
        if self._capacity:
            self._flows.append(flow)
        return flow

    def open_ranges(self) -> list[Range]:
        """Return the ranges that this thread is in, the innermost last; the list itself."""
        try:
            found: list[Range] = self._open.ranges
        except AttributeError:
            found = self._open.ranges = []
        return found

    def ranges(self, *, wait: bool = False) -> dict[str, list[Range]]:
        """Return lane -> its kept completed ranges, in order of time.

        A range precedes those within it.

        Args:
            wait: Wait for those in flight; otherwise they are omitted.
        """
        found = {}
        for name, lane in list(self._lanes.items()):
            kept = list(lane.ranges)
            if wait and kept:
                kept[-1].seconds()  # a lane runs sequentially
            kept = [entry for entry in kept if entry.happened]
            anchor = copy.copy(self._anchor)  # it moves along with the lane
            if anchor is not None:
                for entry in kept:
                    entry.place(anchor)
                _nest(kept)
            found[name] = sorted(kept, key=lambda entry: (entry.begin_ns, -entry.end_ns))
        return found

    def clear(self) -> None:
        """Discard what was recorded."""
        for lane in list(self._lanes.values()):
            lane.ranges.clear()
        self._flows.clear()

    def record(self, measured: Range) -> None:
        """Keep a completed range (`Range` calls it)."""
        if not self._capacity:
            return
        lane = self._lanes.get(measured.lane)
        if lane is None:
            lane = self._lanes.setdefault(measured.lane, _Lane(self._capacity))
        lane.ranges.append(measured)
        lane.count += 1

    def trace(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Export the ranges in Chrome's trace format, for ui.perfetto.dev: a process per rank.

        Each lane is a thread in it.

        Ranges that have not ended are omitted; nothing is waited for.

        Args:
            facts: JSON metadata of the run: its command, commit, hardware.

        Returns:
            ``{"traceEvents": [...], "otherData": {...}}``; times in microseconds since
            `origin_ns`, which was at ``started`` (Unix seconds).
            Source: "Trace Event Format" (Google, 2016).
        """
        events: list[dict[str, Any]] = [
            _meta("process_name", self.process, 1, {"name": f"rank {self.rank}"})
        ]
        ranges = self.ranges()
        threads = {name: thread for thread, name in enumerate(ranges, 1)}
        for name, kept in ranges.items():
            thread = threads[name]
            events.append(_meta("thread_name", self.process, thread, {"name": name}))
            events.append(_meta("thread_sort_index", self.process, thread, {"sort_index": thread}))
            for entry in kept:
                event = self._event("X", entry.name, thread, entry.begin_ns)
                event["dur"] = (entry.end_ns - entry.begin_ns) / 1e3
                if entry.about:
                    event["args"] = dict(entry.about)
                events.append(event)
        first_flow = self.rank << 32  # each rank has its own numbers
        for number, flow in enumerate(list(self._flows), first_flow):
            lanes = [lane for lane, _ in flow.ends if lane in threads]
            if len(lanes) < 2:  # in flight, or a range at one end failed
                continue
            for kind, (lane, ns) in zip("sf", flow.ends, strict=True):
                event = self._event(kind, flow.name, threads[lane], ns)
                events.append(event | {"id": number, "cat": "flow", "bp": "e"})
        lost = sum(lane.count for lane in self._lanes.values()) - sum(map(len, ranges.values()))
        about = {**facts, "started": self._started, "ranges_left_out": lost}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}

    def _event(self, kind: str, name: str, thread: int, ns: int) -> dict[str, Any]:
        when = (ns - self.origin_ns) / 1e3
        return {"name": name, "ph": kind, "pid": self.process, "tid": thread, "ts": when}


def _nest(ranges: list[Range]) -> None:
    """Clip ranges to their parents, to the nanosecond: events are placed by rounded times."""
    known = set(map(id, ranges))
    for entry in reversed(ranges):  # a range ends after those within it
        parent = entry.parent
        if parent is not None and id(parent) in known:
            entry.begin_ns = min(max(entry.begin_ns, parent.begin_ns), parent.end_ns)
            entry.end_ns = max(min(entry.end_ns, parent.end_ns), entry.begin_ns)


def _meta(kind: str, process: int, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": args}
