"""What ran when, and beside what: named ranges on lanes, shown by Perfetto.

A *lane* is what runs one thing at a time: the main stream of a GPU, a side stream, a thread. On a
CPU a range is two readings of the clock. On a GPU it is two events on the current stream; they are
read when they have happened anyway, so that measuring adds no wait, and placed on the CPU's clock
through one event whose time is known.

The GPU part is untested on a GPU.
"""

import copy
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch

MAIN = "main"
"""The lane of whatever was not sent to another one."""

_ANCHOR_MS = 1000.0  # CUDA gives the time between events as float32: near ones are exact to 0.1 us


class Range:
    """A span on the CPU's clock; it is recorded when its ``with`` block ends without an exception.

    Attributes:
        name: What ran.
        lane: Where.
        begin_ns: ``time.perf_counter_ns`` at its begin.
        end_ns: The same at its end.
    """

    __slots__ = ("_timeline", "begin_ns", "end_ns", "lane", "name")

    def __init__(self, name: str, lane: str, timeline: "Timeline") -> None:
        """A range that has not begun."""
        self.name, self.lane, self._timeline = name, lane, timeline
        self.begin_ns = self.end_ns = 0

    def __enter__(self) -> Self:
        """Begin."""
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
        """End."""
        self.end_ns = time.perf_counter_ns()
        if self._timeline.nvtx:
            torch.cuda.nvtx.range_pop()
        if kind is None:
            self._timeline.record(self)

    @property
    def happened(self) -> bool:
        """Whether the times are known without a wait."""
        return True

    def seconds(self) -> float:
        """How long it took; waits for its end."""
        return (self.end_ns - self.begin_ns) / 1e9

    def place(self, anchor: "Anchor") -> None:
        """Fill in `begin_ns` and `end_ns` of a range that has happened."""


class DeviceRange(Range):
    """A span of the current CUDA stream. Untested on a GPU."""

    __slots__ = ("_begin", "_end", "_stream")

    _begin: torch.cuda.Event | None
    _end: torch.cuda.Event | None
    _stream: torch.cuda.Stream

    def __enter__(self) -> Self:
        """Begin."""
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
        """End."""
        if kind is None:
            assert self._end is not None
            self._end.record(self._stream)
        super().__exit__(kind, error, trace)

    @property
    def happened(self) -> bool:
        """See the base class."""
        return self._end is None or self._end.query()

    def seconds(self) -> float:
        """See the base class."""
        if self._begin is None or self._end is None:
            return super().seconds()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3

    def place(self, anchor: "Anchor") -> None:
        """See the base class; the events are let go."""
        if self._begin is None or self._end is None:
            return
        self.begin_ns = anchor.place(self._begin)
        self.end_ns = self.begin_ns + round(self._begin.elapsed_time(self._end) * 1e6)
        self._begin = self._end = None


class Anchor:
    """An event whose time on the CPU's clock is known. Untested on a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Record an event and wait for it, once."""
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record(torch.cuda.current_stream(device))
        self._event.synchronize()
        self._ns = time.perf_counter_ns()

    def place(self, event: torch.cuda.Event) -> int:
        """The CPU's time of an event that has happened, in ns; later ones take it as their anchor.

        The anchor moves along with the stream, since the time between two events loses precision
        as it grows.
        """
        past_ms = self._event.elapsed_time(event)
        ns = self._ns + round(past_ms * 1e6)
        if past_ms > _ANCHOR_MS:
            self._event, self._ns = event, ns
        return ns


class _Lane:
    """The newest ranges of a lane, and how many there were."""

    def __init__(self, capacity: int) -> None:
        self.ranges: deque[Range] = deque(maxlen=capacity)
        self.count = 0


class Timeline:
    """Records ranges. A lane is written by one thread at a time; several lanes may be at once.

    Attributes:
        device: Where `range` measures.
        rank: Number of the process in the trace.
        nvtx: Ranges are shown to NVIDIA's profilers as well.
    """

    def __init__(
        self, device: torch.device, *, rank: int = 0, capacity: int = 0, nvtx: bool = False
    ) -> None:
        """Start the clock.

        Args:
            device: Where `range` measures: events on its streams, or the CPU's clock.
            rank: Number of the process in the trace.
            capacity: How many ranges of each lane are kept, the newest; 0 measures only.
            nvtx: Show ranges to NVIDIA's profilers; needs CUDA.
        """
        self.device, self.rank, self.nvtx = device, rank, nvtx
        self._capacity = capacity
        self._lanes: dict[str, _Lane] = {}
        self._anchor = Anchor(device) if capacity and device.type == "cuda" else None
        self._origin_ns = time.perf_counter_ns()
        self._started = time.time()

    def range(self, name: str, lane: str = MAIN) -> Range:
        """A range, for ``with``, measured where the device works.

        Args:
            name: What runs; not empty.
            lane: Where; a stage that is not sent anywhere runs in `MAIN`.
        """
        if self.device.type == "cuda":
            return DeviceRange(name, lane, self)
        return Range(name, lane, self)

    def host_range(self, name: str, lane: str) -> Range:
        """A range, for ``with``, of what the CPU does, on whatever device; arguments as `range`."""
        return Range(name, lane, self)

    def record(self, measured: Range) -> None:
        """Keep a range that has ended (`Range` calls it)."""
        if not self._capacity:
            return
        lane = self._lanes.get(measured.lane)
        if lane is None:
            lane = self._lanes.setdefault(measured.lane, _Lane(self._capacity))
        lane.ranges.append(measured)
        lane.count += 1

    def trace(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The ranges in Chrome's trace format, for ui.perfetto.dev: a process per rank.

        Each lane is a thread in it.

        Ranges whose end has not happened yet are left out; nothing is waited for.

        Args:
            facts: What to say about the run, JSON: its command, commit, hardware.

        Returns:
            ``{"traceEvents": [...], "otherData": {...}}``; times in microseconds since the
            timeline began, which was at ``started`` (Unix seconds).
            Source: "Trace Event Format" (Google, 2016).
        """
        events: list[dict[str, Any]] = [
            _meta("process_name", self.rank, 0, {"name": f"rank {self.rank}"})
        ]
        lost = 0
        for thread, (name, lane) in enumerate(list(self._lanes.items())):
            events.append(_meta("thread_name", self.rank, thread, {"name": name}))
            events.append(_meta("thread_sort_index", self.rank, thread, {"sort_index": thread}))
            kept = [entry for entry in list(lane.ranges) if entry.happened]
            anchor = copy.copy(self._anchor)  # it moves along with the lane
            for entry in kept:
                if anchor is not None:
                    entry.place(anchor)
            kept.sort(key=lambda entry: (entry.begin_ns, -entry.end_ns))
            events += [
                {
                    "name": entry.name,
                    "ph": "X",
                    "pid": self.rank,
                    "tid": thread,
                    "ts": (entry.begin_ns - self._origin_ns) / 1e3,
                    "dur": (entry.end_ns - entry.begin_ns) / 1e3,
                }
                for entry in kept
            ]
            lost += lane.count - len(kept)
        about = {**facts, "started": self._started, "ranges_left_out": lost}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _meta(kind: str, process: int, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": args}
