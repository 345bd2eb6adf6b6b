"""What a stream measures of itself: stages, chunks, start-up, underruns.

Times are seconds of the wall clock. On a GPU the stages are timed by events on the stream and
read once the frames have reached the host, so that measuring adds no wait.
"""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

_KEPT_CHUNKS = 4096  # bounds the memory of an endless stream


class StageClock:
    """Adds up how long each named stage of a chunk takes."""

    def __init__(self, device: torch.device) -> None:
        """Time on ``device``: CUDA events there, the CPU's clock elsewhere."""
        self._device = device
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside under ``name``; stages do not nest."""
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            yield
            end.record(stream)
            self._events.append((name, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_s

    def collect(self) -> dict[str, float]:
        """Seconds per stage since the last call; waits for the stages' own events only."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        seconds = dict(self._seconds)
        self._events.clear()
        self._seconds.clear()
        return seconds


@dataclass
class StreamStats:
    """Measurements of one session.

    Attributes:
        fps: Frames per second at which the video is played.
        startup: Stage -> seconds from the request to the first frame.
        first_frame: Seconds from the request to the first frame; None before it.
        chunks: Stage -> seconds, one entry a chunk (the newest 4096). The last one, which is cut
            to the audio's length and not encoded again, is left out unless it is the only one.
        chunk_seconds: Seconds of computation of each of them.
        count: Chunks in all, the cut one included.
        frames: Frames that have left the session.
        computing: Seconds of computation in all.
        underrun: Seconds that a player at ``fps`` would have stood still since the first frame.
    """

    fps: float
    startup: dict[str, float] = field(default_factory=dict)
    first_frame: float | None = None
    chunks: deque[dict[str, float]] = field(default_factory=lambda: deque(maxlen=_KEPT_CHUNKS))
    chunk_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_CHUNKS))
    count: int = 0
    frames: int = 0
    computing: float = 0.0
    underrun: float = 0.0
    _request: float = field(default_factory=time.perf_counter)
    _due: float = 0.0

    def chunk_done(self, stages: dict[str, float], seconds: float, *, whole: bool) -> None:
        """A chunk has ended; ``seconds`` is its computation time."""
        if whole or not self.chunks:
            self.chunks.append(stages)
            self.chunk_seconds.append(seconds)
        self.count += 1
        self.computing += seconds

    def delivered(self, count: int) -> None:
        """``count`` frames leave the session now."""
        now = time.perf_counter() - self._request
        if self.first_frame is None:
            self.first_frame = self._due = now
        self.underrun += max(0.0, now - self._due)
        self._due = max(self._due, now) + count / self.fps
        self.frames += count

    @property
    def elapsed(self) -> float:
        """Seconds since the request."""
        return time.perf_counter() - self._request

    def percentile(self, percent: float) -> float | None:
        """Percentile of the chunks' computation time (nearest rank); None before the first."""
        ordered = sorted(self.chunk_seconds)
        if not ordered:
            return None
        rank = max(0, -(-len(ordered) * percent // 100) - 1)
        return ordered[int(rank)]

    def stage_means(self) -> dict[str, float]:
        """Mean seconds per chunk of every stage."""
        totals: dict[str, float] = defaultdict(float)
        for chunk in self.chunks:
            for name, seconds in chunk.items():
                totals[name] += seconds
        return {name: total / len(self.chunks) for name, total in totals.items()}
