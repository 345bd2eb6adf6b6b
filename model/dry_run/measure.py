"""Measured memory: what a pipeline and a session hold, and an allocator's peak.

The former is a free walk over their tensors; the latter runs a chunk. On a CPU, PyTorch's profiler
records the allocator's events, which includes what kernels allocate for themselves; on CUDA the
allocator keeps statistics itself. The CUDA part is untested on a GPU.
"""

import os
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from livetalk_kernels import machine
from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.timeline import MAIN
from livetalk_kernels.units import data_size

from ..encoders.audio import AudioStream
from ..pipeline import Pipeline
from ..stream.chunk import ChunkGenerator, StreamOptions
from ..stream.production import Production
from ..stream.stats import StageClock
from .storages import storages

PORTRAIT = "portrait"
_MARK = "livetalk: "  # prefix of a phase among the profiler's events
_MEMORY_EVENT = "[memory]"
_CHATTER = b"USDT:"  # prefix of those lines
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes, like `Prediction`.

    Attributes:
        weights: Part of the model -> bytes.
        caches: What the session keeps.
        phases: Phase -> peak in addition to weights and caches.
    """

    weights: Mapping[str, int]
    caches: int
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Activations and workspace of the largest phase."""
        return max(self.phases.values())

    @property
    def total(self) -> int:
        """Peak of everything."""
        return sum(self.weights.values()) + self.caches + self.peak

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values, in bytes."""
        return {
            "weights": {**self.weights, "total": sum(self.weights.values())},
            "caches": self.caches,
            "phases": dict(self.phases),
            "activations_and_workspace": self.peak,
            "total": self.total,
        }


def weight_bytes(pipeline: Pipeline) -> dict[str, int]:
    """Map parts of the model to bytes of their parameters and buffers."""
    parts = {"DiT": pipeline.dit, "VAE": pipeline.vae, "audio encoder": pipeline.audio_encoder}
    return {name: sum(storages([part]).values()) for name, part in parts.items()}


def cache_bytes(pipeline: Pipeline, session: Production | ChunkGenerator) -> int:
    """Count the bytes of the tensors that an open session keeps between two chunks."""
    model = storages([pipeline.dit, pipeline.vae, pipeline.audio_encoder, pipeline.team])
    kept = storages([session])
    return sum(size for storage, size in kept.items() if storage not in model)


def require_memory(need: int) -> None:
    """Refuse to measure what would be killed half-way.

    Raises:
        UserError: This process may not take as many bytes.
    """
    here = machine.memory()
    if need > here.available:
        limit = f" of a limit of {data_size(here.limit)}" if here.limit is not None else ""
        raise UserError(
            f"--measure: takes about {data_size(need)}, and {data_size(here.available)}{limit} are "
            "available; use a smaller --preset or --size, or drop --measure"
        )


def measure(pipeline: Pipeline, size: tuple[int, int], options: StreamOptions) -> Measured:
    """Make an avatar from noise, a chunk, and the next one's latents; measure their memory.

    Args:
        pipeline: The model.
        size: Height and width in pixels.
        options: Options of the stream.
    """
    clock = _PhaseClock(pipeline.device)
    if pipeline.device.type == "cuda":
        caches = _run(pipeline, size, options, clock)
        peaks = clock.peaks
    else:
        record = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        with _quiet():
            record.start()
        caches = _run(pipeline, size, options, clock)
        with _quiet():
            record.stop()
        peaks = _peaks(record)
    phases = {name: peak - caches for name, peak in peaks.items()}
    return Measured(weights=weight_bytes(pipeline), caches=caches, phases=phases)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the profiler's library prints about its own start and end off stderr."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(_CHATTER):
                    os.write(2, line)


class _PhaseClock(StageClock):
    """Marks the phases for the profiler; on CUDA, queries the allocator for each one's peak."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.peaks: dict[str, int] = defaultdict(int)
        self._cuda = device if device.type == "cuda" else None
        self._before = 0 if self._cuda is None else torch.cuda.memory_allocated(self._cuda)

    @contextmanager
    def stage(self, name: str, lane: str = MAIN) -> Iterator[None]:
        """Also mark the stage as a phase."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
        with record_function(_MARK + name), super().stage(name, lane):
            yield
        if self._cuda is not None:
            peak = torch.cuda.max_memory_allocated(self._cuda) - self._before
            self.peaks[name] = max(self.peaks[name], peak)


def _run(
    pipeline: Pipeline, size: tuple[int, int], options: StreamOptions, clock: _PhaseClock
) -> int:
    """Run all phases; return the bytes that the stream keeps at the end."""
    draw = np.random.default_rng(_SEED)
    height, width = size
    config = pipeline.dit.config
    with clock.stage(PORTRAIT):
        avatar = pipeline.prepare(
            Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)),
            size=size,
            prompt_embeds=torch.zeros(config.text_len, config.text_dim),
            image_embeds=torch.zeros(1, config.image_len, config.image_dim),
        )
    generator = ChunkGenerator(pipeline.dit, pipeline.vae, avatar, options, clock=clock)
    assert pipeline.audio_encoder is not None, "one rank is measured"
    audio = AudioStream(pipeline.audio_encoder, fps=options.fps)
    noise = draw.uniform(-0.1, 0.1, pipeline.audio_encoder.sample_rate).astype(np.float32)

    def windows() -> Tensor:
        with torch.inference_mode(), clock.stage("audio encoder"):
            return audio.push(noise)[None]

    for _ in generator.chunk(windows()):
        pass
    generator.latents(windows())
    return cache_bytes(pipeline, generator)


def _peaks(record: profile) -> dict[str, int]:
    """Map phases to the peak of bytes allocated since the start."""
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events: list[Any] = record.profiler.kineto_results.events()  # its stubs miss nbytes
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == _MEMORY_EVENT)
    phases = [
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in events
        if event.name().startswith(_MARK)
    ]
    peaks: dict[str, int] = defaultdict(int)
    held, left = 0, deque(sorted(phases))
    for time, count in memory:
        held += count
        while left and left[0][1] < time:
            left.popleft()
        if left and left[0][0] <= time:
            name = left[0][2].removeprefix(_MARK)
            peaks[name] = max(peaks[name], held)
    return dict(peaks)
