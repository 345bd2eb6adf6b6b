"""``report.json``: everything that a profile reports, as described by ``report.schema.json``."""

import resource
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.runtime.timeline import Timeline

from ..config import LATENT_FRAMES, NEW_FRAMES
from ..pipeline import Pipeline
from ..stream.chunk import StreamOptions
from ..stream.stats import StreamStats
from ..vae import SPATIAL
from .breakdown import ChunkTimes, Row, beside_rows, stage_rows, summarise
from .tracer import Tracer

SCHEMA = "livetalk/profile/1"
_COST_CALLS = 2000


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a rank recorded of a run.

    Attributes:
        warmup: Chunks that do not count.
        chunks: Those that do.
        origin_ns: Start of the timeline.
    """

    warmup: Sequence[ChunkTimes]
    chunks: Sequence[ChunkTimes]
    origin_ns: int

    @property
    def wall(self) -> float:
        """Seconds from the start of the first counting chunk to the end of the last."""
        return (self.chunks[-1].end_ns - self.chunks[0].begin_ns) / 1e9

    @property
    def unattributed(self) -> float:
        """Fraction of the wall time outside of any stage."""
        inside = sum(sum(parts.values()) for c in self.chunks for parts in c.stages.values())
        return 1 - inside / self.wall

    def as_json(self) -> dict[str, Any]:
        """Convert warm-up, chunks and their summary, without what the stream itself reports."""
        chunks = self.chunks
        steps = [seconds for chunk in chunks for seconds in chunk.steps]
        return {
            "warmup": [chunk.as_json(self.origin_ns) for chunk in self.warmup],
            "chunks": [chunk.as_json(self.origin_ns) for chunk in chunks],
            "summary": {
                "wall": self.wall,
                "frames": len(chunks) * NEW_FRAMES,
                "fps": len(chunks) * NEW_FRAMES / self.wall,
                "chunk": summarise([chunk.seconds for chunk in chunks]),
                "step": summarise(steps) if steps else None,
                "unattributed": self.unattributed,
                "stages": stage_rows(chunks, self.wall),
                "beside": beside_rows(chunks),
            },
        }


class Span:
    """What one rank measures from the end of the warm-up to the end of the last chunk.

    Attributes:
        peak: Peak of CUDA's allocator in bytes; None on a CPU.
    """

    peak: int | None = None

    def __init__(self, pipeline: Pipeline, *, captured: bool) -> None:
        """Prepare; ``captured``: one of NVIDIA's profilers is attached, and sees only this span."""
        self._cuda = pipeline.device if pipeline.device.type == "cuda" else None
        self._traffic, self._captured = pipeline.team.world.traffic, captured
        self._before: dict[str, tuple[int, int]] = {}

    def begin(self) -> None:
        """Start at the end of the warm-up."""
        self._before = self._sent()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            if self._captured:
                torch.cuda.profiler.start()

    def end(self) -> None:
        """Stop after the last chunk."""
        if self._cuda is not None:
            if self._captured:
                torch.cuda.profiler.stop()
            self.peak = torch.cuda.max_memory_allocated(self._cuda)

    def traffic(self, chunks: int) -> dict[str, dict[str, float]]:
        """Return kind -> bytes and messages that this rank has sent per chunk."""
        found = {}
        for kind, (size, messages) in self._sent().items():
            before = self._before.get(kind, (0, 0))
            if messages > before[1]:
                found[kind] = {
                    "bytes": (size - before[0]) / chunks,
                    "messages": (messages - before[1]) / chunks,
                }
        return found

    def _sent(self) -> dict[str, tuple[int, int]]:
        return {
            kind: (size, self._traffic.messages[kind]) for kind, size in self._traffic.bytes.items()
        }


def settings(
    pipeline: Pipeline, options: StreamOptions, *, model: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Collect what ran, and how.

    Args:
        pipeline: The model.
        options: Options of the stream.
        model: Name of the preset or checkpoint.
        size: Height and width in pixels.
    """
    height, width = (side // SPATIAL for side in size)
    grid = pipeline.dit.token_grid((LATENT_FRAMES, height, width))
    linears = ["FP8 linears"] if pipeline.dit.fp8 else []
    return {
        "model": model,
        "size": list(size),
        "tokens": grid[0] * grid[1] * grid[2],
        "device": str(pipeline.device),
        "dtype": dtype_name(pipeline.dtype),
        "precision": "fp8" if pipeline.dit.fp8 else "exact",
        "approximate": linears + pipeline.approximate,
        "threads": torch.get_num_threads(),
        "reuse": pipeline.reuse,
        "cuda_graphs": pipeline.graphed,
        "compiled": pipeline.compiled,
        "random_weights": pipeline.random,
        **options.to_json(),
        "ranks": {
            "world": pipeline.team.size,
            **vars(pipeline.dit.parallel.mesh),
            "vae_grid": str(pipeline.team.grid(size)),
        },
        "backends": {part: ops.chosen for part, ops in pipeline.ops.items()},
    }


def stream_facts(stats: StreamStats, load: Mapping[str, float]) -> dict[str, Any]:
    """Collect loading and start-up times, in seconds.

    Args:
        stats: Statistics of the session.
        load: Seconds that each part took to load.
    """
    return {
        "load": {**load, "total": sum(load.values())},
        "startup": {"first_frame": stats.first_frame, "stages": stats.startup},
    }


def rank_entry(pipeline: Pipeline, recording: Recording, span: Span) -> Row:
    """Collect what a rank reports about itself."""
    summary = recording.as_json()["summary"]
    return {
        "rank": pipeline.team.world.rank,
        "host": socket.gethostname(),
        "device": str(pipeline.device),
        "chunk": summary["chunk"],
        "stages": summary["stages"],
        "traffic": span.traffic(len(recording.chunks)),
        "peak_memory": span.peak,
    }


def memory_facts(
    report: Mapping[str, Any], peak: int | None, activations: int | None
) -> dict[str, Any]:
    """Collect memory by kind, in bytes.

    Args:
        report: The command line's memory report: measured weights and caches, and the prediction.
        peak: Peak of the allocator; None if it keeps no statistics.
        activations: Measured peak in addition to weights and caches; None: the rest of ``peak``.
    """
    measured = report["measured"]
    kept = measured["weights"]["total"] + measured["caches"]
    if peak is not None:
        activations = peak - kept
    elif activations is not None:
        peak = kept + activations
    return {
        "weights": measured["weights"],
        "caches": measured["caches"],
        "activations": activations,
        "peak": peak,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "predicted": report["predicted"],
    }


def tracing_cost(timeline: Timeline, recording: Recording) -> dict[str, Any]:
    """Measure what recording itself cost: ranges, seconds per range, and fraction of the time."""
    other = Timeline(timeline.device, capacity=_COST_CALLS, nvtx=timeline.nvtx)
    x = torch.empty(1, 8, 8)
    nothing = Choice(
        name="", run=lambda *_, **__: None, pack=lambda _: None, approximate=False, reason=""
    )
    run = Tracer(other).wrap(Ops({"rms_norm": nothing})).rms_norm
    run(x, x[0, 0], eps=1e-6)  # metadata of the op is determined once
    begin = time.perf_counter()
    for _ in range(_COST_CALLS):
        run(x, x[0, 0], eps=1e-6)
    each = (time.perf_counter() - begin) / _COST_CALLS
    events = sum(chunk.events for chunk in recording.chunks)
    return {
        "events": events,
        "seconds_per_event": each,
        "share": events * each / recording.wall,
    }
