"""Times calls on a GPU, excluding launch overhead.

Two CUDA graphs are replayed; a call takes their difference divided by the number of calls:

    cold   [flush, call] * n  minus  [flush] * n
    hot    [call] * 2n        minus  [call] * n

Launching a graph takes 2 to 5 us on the GPU; both include it, so it cancels. What remains is the
cost of a kernel within the model's graph, including its start behind the preceding one.

A flush writes a buffer twice as large as L2, then reads it: after the write alone, L2 would be full
of dirty lines, and the call would wait for their write-back.

A call that cannot be captured is launched between two events instead. The flush before it keeps the
GPU busy for some 50 us; if launching takes the CPU longer, the time includes launches.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import profiler

from ..spec import Arguments
from .timer import MAX_CALLS, SAMPLE_SECONDS, WARM_SECONDS, Run, Sampler

LEAST_CALLS = 3  # for a median
PROFILED_CALLS = 10
RESOLUTION = 0.5e-6  # seconds, of CUDA events
GRAPHS, LAUNCHES = "graphs", "launches"


class CudaTimer:
    """Times calls with graphs, or with launches between events; see the module docstring.

    Attributes:
        timing: How the latest ``start`` times its call: ``graphs`` or ``launches``.
    """

    def __init__(self, device: torch.device, arguments: Arguments, *, hot: bool = False) -> None:
        """Allocate the buffer.

        Args:
            device: The GPU, which need not be the current device.
            arguments: Arguments of one call.
            hot: Leave the inputs in the cache between calls.
        """
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        self._buffer = None if hot else torch.zeros(size // 4, device=device)
        self._sum = torch.zeros((), device=device)
        self._device = device
        self._arguments = arguments
        self._side = torch.cuda.Stream(device)
        self.timing = ""

    def start(self, run: Run, *, again: bool = False) -> Sampler:
        """Warm up for a set time, then capture.

        Args:
            run: Function to time, called with the arguments.
            again: It has been warmed up before, so one call is enough.
        """
        positional, keywords = self._arguments

        def call() -> None:
            run(*positional, **keywords)

        with torch.cuda.device(self._device):
            return self._start(call, 0.0 if again else WARM_SECONDS["cuda"])

    def prepare(self) -> Arguments:
        """Prepare the caches for a call, and return its arguments."""
        with torch.cuda.device(self._device):
            self._flush()
        return self._arguments

    def kernel_seconds(self, run: Run) -> float | None:
        """Measure the seconds of a call's kernels and copies with CUPTI, excluding the gaps.

        Args:
            run: Function to measure, called with the arguments.

        Returns:
            Their sum, the mean of several calls; None if CUPTI is not available.
        """
        if profiler.ProfilerActivity.CUDA not in profiler.supported_activities():
            return None
        positional, keywords = self._arguments
        with torch.cuda.device(self._device):
            flushes = self._profiled(lambda: None)
            both = self._profiled(lambda: run(*positional, **keywords))
        return (both - flushes) / PROFILED_CALLS if both > flushes else None

    def _start(self, call: Callable[[], None], warm: float) -> Sampler:
        end = time.perf_counter() + warm
        call()
        while time.perf_counter() < end:
            call()
            torch.cuda.synchronize(self._device)
        alone = self._between_events(call, LEAST_CALLS)
        unit = alone + self._between_events(self._flush, LEAST_CALLS)
        count = max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / 2 / unit)))
        graphs = self._graphs(call, count)
        self.timing = GRAPHS if graphs else LAUNCHES
        if graphs is None:
            calls = max(LEAST_CALLS, min(MAX_CALLS, int(SAMPLE_SECONDS / unit)))
            return self._on_device(lambda: self._between_events(call, calls))
        longer, shorter = graphs
        return self._on_device(
            lambda: (
                max(self._seconds(longer.replay) - self._seconds(shorter.replay), RESOLUTION)
                / count
            )
        )

    def _on_device(self, sample: Sampler) -> Sampler:
        def on_device() -> float:
            with torch.cuda.device(self._device):
                return sample()

        return on_device

    def _flush(self) -> None:
        if self._buffer is not None:
            self._buffer.fill_(1.0)
            torch.sum(self._buffer, dim=0, out=self._sum)

    def _graphs(
        self, call: Callable[[], None], count: int
    ) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph] | None:
        """Capture two graphs that differ by ``count`` calls; None if a call cannot be captured."""

        def flushed() -> None:
            self._flush()
            call()

        hot = self._buffer is None
        longer = self._capture(flushed, 2 * count if hot else count)
        if longer is None:
            return None
        shorter = self._capture(call if hot else self._flush, count)
        if shorter is None:
            return None
        for graph in (longer, shorter):  # a graph's first replay also uploads it
            graph.replay()
        return longer, shorter

    def _capture(self, step: Callable[[], None], count: int) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            step()
        current.wait_stream(self._side)
        try:
            # The outer block restores the stream in any case: torch.cuda.graph leaves its own
            # behind if ending the capture fails. thread_local: other threads may use CUDA.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"),
            ):
                for _ in range(count):
                    step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it synchronises with the GPU, or uses pageable memory
            torch.cuda.synchronize(self._device)
            return None
        return graph

    def _between_events(self, call: Callable[[], None], calls: int) -> float:
        """Time one call in seconds: the median of several queued calls, each after a flush."""
        pairs = [self._events() for _ in range(calls)]
        for begin, end in pairs:
            self._flush()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(self._device)
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3

    def _seconds(self, replay: Callable[[], None]) -> float:
        begin, end = self._events()
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize(self._device)
        return begin.elapsed_time(end) / 1e3

    def _profiled(self, call: Callable[[], object]) -> float:
        """Measure the GPU seconds of several calls, each after a flush."""
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as record:
            for _ in range(PROFILED_CALLS):
                self._flush()
                call()
            torch.cuda.synchronize(self._device)
        on_gpu = [e for e in record.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(event.time_range.elapsed_us() for event in on_gpu) / 1e6

    @staticmethod
    def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
