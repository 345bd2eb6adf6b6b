"""A profile on one rank: load with everything recorded, run the stream, report.

Rank 0 leads and reports; the others follow, and send it their findings at the end.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from livetalk_kernels.bench.telemetry import Telemetry
from livetalk_kernels.runtime.timeline import Timeline

from ..avatar import Avatar
from ..dry_run.measure import measure
from ..dry_run.report import memory_report
from ..loading import ModelSource
from ..media.synthetic import picture
from ..pipeline import Pipeline
from ..stream.chunk import Frames, StreamOptions
from ..stream.session import Session
from ..stream.team import Team
from .breakdown import chunk_times
from .ops import limits_json, measure_limits, op_rows, operand_dtypes
from .report import (
    SCHEMA,
    Recording,
    Span,
    memory_facts,
    rank_entry,
    settings,
    stream_facts,
    tracing_cost,
)
from .run import Length, Pace, run_stream
from .tracer import Tracer

KEPT_RANGES = 1 << 22  # per lane: hundreds of chunks
Say = Callable[[str, str], None]
"""Called with progress: a headline and details."""
Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to record.

    Attributes:
        model: Name of the preset or checkpoint, for the report.
        length: Chunks.
        options: Options of the stream.
        ops: Whether to record the ops within the stages.
        compiled: Whether the transformer runs through torch.compile.
        video: Whether to encode the frames into a video, which is discarded.
        captured: Whether one of NVIDIA's profilers is attached: show it ranges, and only measured
            chunks.
    """

    model: str
    length: Length
    options: StreamOptions
    ops: bool = True
    compiled: bool = False
    video: bool = True
    captured: bool = False


class Pacer(Pace, Protocol):
    """Decides when a chunk begins, and receives its times (`paced.Pacer`)."""

    def ready(self, settings: Mapping[str, Any]) -> None:
        """Note that the warm-up is over."""

    def report(self, chunk: Mapping[str, Any]) -> None:
        """Receive a measured chunk."""


class Profiler:
    """One rank's part of a profile.

    Attributes:
        timeline: Recorded ranges.
        team: The ranks.
        plan: What to record.
        source: The model.
        say: Called with progress.
    """

    def __init__(self, source: ModelSource, team: Team, plan: Plan, say: Say) -> None:
        """Load nothing yet; all ranks create one together."""
        device = source.device
        self.timeline = Timeline(
            device,
            rank=team.world.rank,
            capacity=KEPT_RANGES,
            nvtx=plan.captured and device.type == "cuda",
        )
        self.timeline.align(team.gather)
        self.plan, self.say = plan, say
        # Graph replays and compiled code do not pass through us, and must not be recorded.
        hidden = not plan.ops or plan.compiled or source.cuda_graphs
        self.team = team if hidden else team.timed(self.timeline)
        self._tracer = None if hidden else Tracer(self.timeline)
        wrap = None if self._tracer is None else self._tracer.wrap
        self.source = replace(source, compiled=plan.compiled, wrap=wrap)

    def follow(self, facts: Facts, keep: Callable[[dict[str, Any]], None]) -> None:
        """Compute a follower rank's part.

        Args:
            facts: For the trace: command and machine.
            keep: Stores the trace, before rank 0 continues with its report.

        Raises:
            CommError: A rank is lost.
        """
        pipeline = self._load()
        span = Span(pipeline, captured=self.plan.captured)

        def ended(count: int) -> None:
            if count == self.plan.length.warmup:
                span.begin()

        pipeline.follow(self.timeline, ended)
        span.end()
        entry = rank_entry(pipeline, self.recording(), span)
        keep(self.timeline.trace(facts))
        self._gather(entry)

    def pace(self, avatar: Avatar | None, size: tuple[int, int] | None, pacer: Pacer) -> None:
        """Make chunks on request, for a comparison; for rank 0, arguments as in `lead`."""
        pipeline, avatar, _ = self._prepare(avatar, size)
        self._run(pipeline, avatar, _Paced(self, pipeline, avatar, pacer), pacer)
        self._gather({})

    def lead(
        self, avatar: Avatar | None, size: tuple[int, int] | None, facts: Facts
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Run and report; for rank 0.

        Args:
            avatar: Avatar to animate; by default a smooth picture.
            size: Of that picture, height and width; by default the model's.
            facts: Command and machine.

        Returns:
            The report, whose ``files`` the caller must fill in, and the trace.

        Raises:
            UserError: The avatar or the size does not fit the model or the ranks.
            NumericsError: NaN or Inf arose.
        """
        pipeline, avatar, avatar_seconds = self._prepare(avatar, size)
        watcher = _Watcher(self, pipeline, avatar)
        origin = self.timeline.origin_ns
        with Telemetry(self._devices()) as telemetry:
            self._run(pipeline, avatar, watcher)
        recording = self.recording()
        entries = self._gather(rank_entry(pipeline, recording, watcher.span))
        trace = self.timeline.trace(facts)
        trace["traceEvents"] += telemetry.counters(origin, self.timeline.process)
        self.say("measuring memory and the machine's limits", "")
        with self.team.phase("measure"):
            activations = self._activations(pipeline, avatar)
            memory = memory_facts(watcher.memory, watcher.span.peak, activations)
            limits = measure_limits(pipeline.device, operand_dtypes(recording.chunks))
        stats = watcher.session.stats
        body = recording.as_json()
        body["summary"] |= {
            "realtime_factor": body["summary"]["fps"] / stats.fps,
            "underrun": stats.underrun - watcher.underrun,
        }
        report = {
            "schema": SCHEMA,
            **facts,
            "complete": len(recording.chunks) == self.plan.length.chunks,
            "settings": watcher.settings,
            **stream_facts(stats, vars(pipeline.load_times) | {"avatar": avatar_seconds}),
            **body,
            "ops": op_rows(recording.chunks, limits),
            "limits": limits_json(limits),
            "ranks": entries,
            "memory": memory,
            "telemetry": telemetry.as_json(origin),
            "tracing": tracing_cost(self.timeline, recording),
            "files": [],
        }
        return report, trace

    def recording(self) -> Recording:
        """Return what has been recorded so far."""
        found, warm = chunk_times(self.timeline.ranges(wait=True)), self.plan.length.warmup
        return Recording(
            warmup=found[:warm], chunks=found[warm:], origin_ns=self.timeline.origin_ns
        )

    def _gather(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """Collect every rank's entry."""
        with self.team.phase("finish"):
            return list(map(json.loads, self.team.gather(json.dumps(entry).encode())))

    def _devices(self) -> list[torch.device]:
        """List the GPUs of this machine that the ranks use; none on a CPU."""
        device = self.source.device
        if device.type != "cuda" or self.team.size == 1:
            return [device]
        count = min(self.team.size, torch.cuda.device_count())
        return [torch.device("cuda", index) for index in range(count)]

    def _load(self) -> Pipeline:
        with self.team.phase("load"):
            pipeline = self.source.load_pipeline(self.source.load_preparer(), self.team)
        if self._tracer is not None:
            self._tracer.watch(pipeline.dit)
        return pipeline

    def _prepare(
        self, avatar: Avatar | None, size: tuple[int, int] | None
    ) -> tuple[Pipeline, Avatar, float]:
        """Prepare the model and the avatar; also return how long the avatar took."""
        self.say("loading", self.plan.model)
        pipeline = self._load()
        with self.team.phase("prepare"):
            begin = time.perf_counter()
            if avatar is None:
                size = size or pipeline.preparer.size
                avatar = pipeline.prepare(picture(size), size=size)
            seconds = time.perf_counter() - begin
            self.team.grid(avatar.size)
        return pipeline, avatar, seconds

    def _run(
        self, pipeline: Pipeline, avatar: Avatar, watcher: "_Watcher", pace: Pace | None = None
    ) -> None:
        with self._frames_taken(avatar.size) as write:
            run_stream(
                pipeline,
                avatar,
                self.plan.options,
                self.timeline,
                self.plan.length,
                write=write,
                observer=watcher,
                pace=pace,
            )
        pipeline.end()

    @contextmanager
    def _frames_taken(self, size: tuple[int, int]) -> Iterator[Callable[[Frames], None]]:
        """Yield the consumer of frames: a video that is discarded, or nobody."""
        if not self.plan.video:
            yield lambda frames: None
            return
        from ..media.video import open_writer
        from ..media.writer import BackgroundWriter

        with tempfile.TemporaryDirectory() as folder:
            writer = open_writer(Path(folder, "video.mp4"), *size, self.plan.options.fps)
            with BackgroundWriter(writer, timeline=self.timeline) as background:
                yield background.write

    def _activations(self, pipeline: Pipeline, avatar: Avatar) -> int | None:
        """Measure the peak above weights and caches, on a CPU, with one more chunk; in bytes."""
        if pipeline.device.type != "cpu" or self.team.size > 1 or not pipeline.reuse:
            return None
        return measure(pipeline, avatar.size, self.plan.options).peak


class _Watcher:
    """Observes the running stream (`run.Observer`).

    Attributes:
        session: The stream.
        settings: Settings of the run.
        memory: Weights and caches, and the prediction.
        span: Span of the measured chunks.
        underrun: Seconds that a player had stalled before them.
    """

    session: Session
    memory: dict[str, Any]
    underrun: float = 0.0

    def __init__(self, profiler: Profiler, pipeline: Pipeline, avatar: Avatar) -> None:
        self.profiler, self.pipeline, self.avatar = profiler, pipeline, avatar
        plan = profiler.plan
        self.settings = settings(pipeline, plan.options, model=plan.model, size=avatar.size)
        self.span = Span(pipeline, captured=plan.captured)
        self._measured = 0

    def opened(self, session: Session) -> None:
        self.session = session

    def chunk(self, index: int) -> None:
        length = self.profiler.plan.length
        number = index + 1 - length.warmup
        if number == 0:
            self.warm()
        elif number > 0:
            self.done(number)
        seconds = self.session.stats.chunk_seconds[-1]
        of = f"{index + 1} of {length.warmup}" if number <= 0 else f"{number} of {length.chunks}"
        self.profiler.say(f"{'warm-up' if number <= 0 else 'chunk'} {of}: {seconds:.2f} s", "")

    def warm(self) -> None:
        """Note that the warm-up is over."""
        self.underrun = self.session.stats.underrun
        self.span.begin()

    def done(self, number: int) -> None:
        """Note that ``number`` measured chunks are done."""
        self._measured = number

    def interrupted(self) -> bool:
        """Keep what one rank has measured so far; several are in the middle of a chunk."""
        return self._measured > 0 and self.profiler.team.size == 1

    def closing(self) -> None:
        self.span.end()
        self.memory = memory_report(self.profiler.source, self.pipeline, self.session, self.avatar)


class _Paced(_Watcher):
    """Reports every measured chunk to a pacer."""

    def __init__(
        self, profiler: Profiler, pipeline: Pipeline, avatar: Avatar, pacer: Pacer
    ) -> None:
        super().__init__(profiler, pipeline, avatar)
        self._pacer = pacer

    def warm(self) -> None:
        self.profiler.timeline.clear()
        self._pacer.ready(self.settings)

    def done(self, number: int) -> None:
        timeline = self.profiler.timeline
        (chunk,) = chunk_times(timeline.ranges(wait=True))
        timeline.clear()
        self._pacer.report(chunk.as_json(timeline.origin_ns))

    def interrupted(self) -> bool:
        return False

    def closing(self) -> None:
        """Do nothing: there is no report."""
