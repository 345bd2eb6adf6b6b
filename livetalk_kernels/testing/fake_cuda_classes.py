"""Substitutes for classes of ``torch.cuda`` and ``torch.profiler``, for `fake_cuda`.

`FakeCuda` subclasses each of them to attach its GPUs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .fake_cuda import FakeCuda

LAUNCH = 4e-6  # seconds of a graph launch on the GPU


@dataclass(frozen=True)
class Work:
    """A call on a GPU, and how to repeat it."""

    name: str
    seconds: float
    again: Callable[[], object] | None = None


class Stream:
    """`torch.cuda.Stream`; queued work has already run."""

    gpus: ClassVar["FakeCuda"]

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        """Belong to a device."""
        self.index, self.cuda_stream = self.gpus.index(device), 0
        self.device = torch.device("cuda", self.index)

    def wait_stream(self, stream: "Stream") -> None:
        """Do nothing: there is nothing to wait for."""
        assert isinstance(stream, Stream)

    def wait_event(self, event: "Event") -> None:
        """Do nothing: there is nothing to wait for."""
        assert isinstance(event, Event)

    def synchronize(self) -> None:
        """Record the wait; the work is done."""
        self.gpus.refuse_in_capture("synchronize")


class Event:
    """`torch.cuda.Event` on the GPUs' clock."""

    gpus: ClassVar["FakeCuda"]

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        """Start unrecorded."""
        self._timed, self._at, self._index = enable_timing, -1.0, -1

    def record(self, stream: Stream | None = None) -> None:
        """Record the present time."""
        if self._timed:
            self.gpus.refuse_in_capture("an event that keeps time")
        self._at = self.gpus.now
        self._index = self.gpus.current if stream is None else stream.index
        self.gpus.done.append(("event", self._index))

    def query(self) -> bool:
        """Return True: it has passed."""
        self.gpus.refuse_in_capture("query")
        return True

    def synchronize(self) -> None:
        """Record the wait; it has passed."""
        self.gpus.refuse_in_capture("synchronize")

    def elapsed_time(self, end_event: "Event") -> float:
        """Return the milliseconds until another event.

        Raises:
            ValueError: As in torch, if one of them was not recorded or has no timing.
            RuntimeError: They are on different devices.
        """
        if min(self._at, end_event._at) < 0 or not (self._timed and end_event._timed):
            raise ValueError("Both events must be recorded, with enable_timing=True")
        if self._index != end_event._index:
            raise RuntimeError("CUDA error: invalid resource handle: events of two devices")
        return (end_event._at - self._at) * 1e3


class Capture:
    """A graph being captured.

    Attributes:
        work: What it holds so far.
        made: Storages allocated during the capture.
        broken: Whether something has invalidated it.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.work: list[Work] = []
        self.made: set[torch.UntypedStorage] = set()
        self.broken = False
        self._before: dict[torch.UntypedStorage, torch.UntypedStorage] = {}

    def keep(self, storages: Iterable[torch.UntypedStorage]) -> None:
        """Save the contents of memory that a call may write."""
        for storage in storages:
            if storage not in self.made and storage not in self._before:
                self._before[storage] = storage.clone()

    def undo(self) -> None:
        """Restore what was changed and spoil what was allocated: a capture runs nothing."""
        for storage, before in self._before.items():
            storage.copy_(before)
        for storage in self.made:
            storage.fill_(0xFF)  # type: ignore[attr-defined]  # NaN in every float


class CUDAGraph:
    """`torch.cuda.CUDAGraph`: repeats its calls."""

    gpus: ClassVar["FakeCuda"]

    def __init__(self, keep_graph: bool = False) -> None:
        """Start empty."""
        self.held: list[Work] | None = None

    def pool(self) -> tuple[int, int]:
        """Return a handle."""
        return 0, 1

    def replay(self) -> None:
        """Repeat all calls, into the memory of the first time."""
        assert self.held is not None, "nothing was captured"
        self.gpus.refuse_in_capture("replay")
        self.gpus.calls["replay"] += 1
        self.gpus.notes.append("replay")
        self.gpus.now += LAUNCH
        for work in self.held:
            self.gpus.work(work.name, work.seconds)
            if work.again is not None:
                work.again()


class graph:  # noqa: N801 (torch's name)
    """`torch.cuda.graph`."""

    gpus: ClassVar["FakeCuda"]

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Any = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        """Prepare a capture."""
        assert stream is not None, "else torch takes the first device's, whatever is current"
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        self._graph, self._stream = cuda_graph, stream

    def __enter__(self) -> None:
        """Start capturing."""
        gpus = self.gpus
        assert gpus.current == self._stream.index and gpus.capture is None
        self._before, gpus.streams[gpus.current] = gpus.streams[gpus.current], self._stream
        gpus.capture = Capture()

    def __exit__(self, *error: object) -> None:
        """Stop capturing.

        Raises:
            RuntimeError: The capture is broken; as in torch, its stream remains current.
        """
        gpus, capture = self.gpus, self.gpus.capture
        assert capture is not None
        gpus.capture = None
        capture.undo()
        if capture.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        self._graph.held, gpus.streams[gpus.current] = capture.work, self._before


class Generator(torch.Generator):
    """`torch.Generator`, also for a GPU: its numbers are drawn on the CPU."""

    gpus: ClassVar["FakeCuda"]
    _where: torch.device

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """Create one for a device."""
        made: Generator = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        where = torch.device(device)
        made._where = torch.device("cuda", cls.gpus.index(where)) if where.type == "cuda" else where
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that it claims."""
        return self._where


class profile:  # noqa: N801 (torch's name)
    """`torch.profiler.profile`: one kernel that lasts as long as everything that ran."""

    gpus: ClassVar["FakeCuda"]

    def __init__(self, *, activities: Iterable[Any] | None = None) -> None:
        """Start with nothing recorded."""
        self._seconds = 0.0

    def __enter__(self) -> Self:
        """Start recording."""
        self._begin = self.gpus.now
        return self

    def __exit__(self, *error: object) -> None:
        """Stop recording."""
        self._seconds = self.gpus.now - self._begin

    def events(self) -> list[SimpleNamespace]:
        """Return what ran, and the host's part, which takes longer."""
        kinds = torch.autograd.DeviceType
        host = SimpleNamespace(device_type=kinds.CPU, time_range=_span(1.0))
        return [SimpleNamespace(device_type=kinds.CUDA, time_range=_span(self._seconds)), host]

    def export_chrome_trace(self, path: str) -> None:
        """Write the trace."""
        event = f'{{"cat": "kernel", "ts": 0, "dur": {self._seconds * 1e6}}}'
        Path(path).write_text(f'{{"traceEvents": [{event}]}}', encoding="utf-8")


def _span(seconds: float) -> SimpleNamespace:
    return SimpleNamespace(elapsed_us=lambda: seconds * 1e6)


def tensors_in(*given: Any) -> list[Tensor]:
    """Find tensors in nested tuples, lists and dictionaries, in order."""
    found: list[Tensor] = []
    for value in given:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(*value)
        elif isinstance(value, dict):
            found += tensors_in(*value.values())
    return found
