"""What a stream measures about itself: stages, chunks, start-up, underruns.

Times are wall-clock seconds. On a GPU the stages are timed by events on the stream, which are read
once the frames have reached the host, so that measuring adds no wait. A stage that runs on another
lane, concurrently with other stages, is distinguished by its name: the sum of the others remains
the time that a chunk takes.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from livetalk_kernels.runtime.timeline import MAIN, Range, Timeline

Phase = Callable[[str], AbstractContextManager[None]]
"""Marks what a rank is doing, for a watchdog: name of a stage -> context."""

STAGES: Mapping[str, str] = MappingProxyType(
    {
        "prepare": "start of the session",
        "audio encoder": "speech to features (wav2vec2)",
        "audio K/V": "features to keys and values",
        "denoise": "noise to latents, all steps",
        "decode": "latents to frames (VAE)",
        "colour": "match the portrait's colours",
        "to host": "frames to CPU memory",
        "encode": "last frames to motion latents",
        "warm decoder": "history for the next chunk",
    }
)
"""Stages of a chunk in execution order, and what each does."""
BESIDE = " (beside)"
"""Suffix of a stage that ran concurrently with those of the main lane."""

CHUNK = "chunk"
"""Range around a whole chunk in the timeline, on the main lane, enclosing the stages."""
_KEPT_CHUNKS = 4096  # bounds the memory of an endless stream


def no_phase(name: str) -> AbstractContextManager[None]:
    """Do nothing: nobody watches."""
    return nullcontext()


class StageClock:
    """Adds up how long each named stage of a chunk takes.

    Attributes:
        timeline: Also records every stage.
    """

    def __init__(
        self,
        device: torch.device,
        timeline: Timeline | None = None,
        *,
        phase: Phase = no_phase,
    ) -> None:
        """Time on ``device``, by CUDA events or the CPU's clock; by default nothing is recorded.

        ``phase`` is entered with the name of every main-lane stage, for a watchdog.
        """
        self.timeline = timeline or Timeline(device)
        self._phase = phase
        self._ended: deque[Range] = deque()

    @contextmanager
    def stage(self, name: str, lane: str = MAIN) -> Iterator[None]:
        """Time the block as stage ``name``; stages of a lane do not nest."""
        with (
            self._phase(name) if lane == MAIN else nullcontext(),
            self.timeline.range(name, lane) as measured,
        ):
            yield
        self._ended.append(measured)

    def collect(self) -> dict[str, float]:
        """Return the seconds per stage since the last call; waits only for the stages' own events.

        Stages of other lanes are named ``<name> (beside)``, and counted once they have ended.
        """
        return self.cut()()

    def cut(self) -> Callable[[], dict[str, float]]:
        """Do the same as `collect`, but wait only when the result is called, once."""
        taken = [self._ended.popleft() for _ in range(len(self._ended))]

        def add_up() -> dict[str, float]:
            seconds: dict[str, float] = defaultdict(float)
            for measured in taken:
                if measured.lane == MAIN:
                    seconds[measured.name] += measured.seconds()
                elif measured.happened:
                    seconds[f"{measured.name}{BESIDE}"] += measured.seconds()
                else:
                    self._ended.append(measured)
            return dict(seconds)

        return add_up


@dataclass
class StreamStats:
    """Measurements of one session, for the frames and chunks that have been taken from it.

    Attributes:
        fps: Frames per second at which the video is played.
        startup: Stage -> seconds from the request to the first frame.
        first_frame: Seconds from the request to the first frame; None before it.
        chunks: Stage -> seconds, one entry per chunk (the newest 4096). The last one, which is
        cut to the audio's length and not encoded again, is left out unless it is the only one.
        chunk_seconds: Seconds of computation for each of them.
        count: Total number of chunks, including the cut one.
        frames: Frames delivered.
        computing: Total seconds of computation.
        underrun: Seconds that a player at ``fps`` would have stalled since the first frame.
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
        """Record the end of a chunk; ``seconds`` is its computation time."""
        if whole or not self.chunks:
            self.chunks.append(stages)
            self.chunk_seconds.append(seconds)
        self.count += 1
        self.computing += seconds

    def delivered(self, count: int) -> None:
        """Record that ``count`` frames are delivered now."""
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
        """Compute a percentile of the chunks' times (nearest rank); None before the first."""
        ordered = sorted(self.chunk_seconds)
        if not ordered:
            return None
        rank = max(0, -(-len(ordered) * percent // 100) - 1)
        return ordered[int(rank)]

    def stage_means(self) -> dict[str, float]:
        """Compute the mean seconds per chunk of every stage."""
        totals: dict[str, float] = defaultdict(float)
        for chunk in self.chunks:
            for name, seconds in chunk.items():
                totals[name] += seconds
        return {name: total / len(self.chunks) for name, total in totals.items()}
