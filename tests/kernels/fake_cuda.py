"""Two GPUs that are not there: a stand-in for ``torch.cuda`` with a clock of its own.

Tensors of a GPU lie on the CPU, where PyTorch really calculates; each operation also takes time on
the fake's clock, or goes into the graph that is being captured. What torch.cuda refuses, such as
waiting within a capture or an event on another device's stream, the fake refuses as well.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

L2_BYTES = 1 << 16
WRITE, READ, OTHER = 30e-6, 20e-6, 1e-6  # seconds of a flush's halves and of any other operation
LAUNCH = 4e-6  # of a graph, on the GPU
NAMES = (
    "CUDAGraph", "Event", "Stream", "current_device", "current_stream", "device", "device_count",
    "get_device_capability", "get_device_name", "get_device_properties", "graph", "is_available",
    "mem_get_info", "set_device", "stream", "synchronize", "empty_cache",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """An operation on a GPU."""

    name: str
    seconds: float


@dataclass(eq=False)
class FakeStream:
    device: int

    def wait_stream(self, stream: "FakeStream") -> None:
        assert isinstance(stream, FakeStream)


@dataclass
class FakeCuda:
    """The state of both GPUs.

    Attributes:
        now: Seconds on their clock.
        done: What has run, with the device it ran on.
        notes: Other calls, by name.
    """

    now: float = 0.0
    current: int = 0
    done: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    capture: list[Work] | None = None
    broken: bool = False  # the capture that is under way

    def __post_init__(self) -> None:
        self.streams = [FakeStream(0), FakeStream(1)]

    def work(self, name: str, seconds: float) -> None:
        """Do it, or capture it."""
        if self.capture is not None:
            self.capture.append(Work(name, seconds))
            return
        self.now += seconds
        self.done.append((name, self.current))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of torch.cuda's functions; each has parameters of the real ones."""
        fakes = _fakes(self)
        assert set(fakes) == set(NAMES)
        for name, fake in fakes.items():
            real = inspect.signature(getattr(torch.cuda, name)).parameters
            assert set(inspect.signature(fake).parameters) <= set(real), name
            monkeypatch.setattr(torch.cuda, name, fake)
        profiler = SimpleNamespace(
            start=lambda: self.notes.append("start"), stop=lambda: self.notes.append("stop")
        )
        monkeypatch.setattr(torch.cuda, "profiler", profiler)
        nvtx = SimpleNamespace(range=lambda msg: self.notes.append(msg) or nullcontext())
        monkeypatch.setattr(torch.cuda, "nvtx", nvtx)


def index_of(device: torch.device | int | None, fake: FakeCuda) -> int:
    index = device.index if isinstance(device, torch.device) else device
    return fake.current if index is None else index


def _fakes(fake: FakeCuda) -> dict:
    class Event:
        def __init__(self, enable_timing=False):
            assert enable_timing
            self.at = -1.0

        def record(self, stream=None):
            assert fake.capture is None, "a timing event in a capture"
            self.at = fake.now
            fake.done.append(("event", fake.current if stream is None else stream.device))

        def synchronize(self):
            assert fake.capture is None and self.at >= 0

        def elapsed_time(self, end):
            assert self.at >= 0 and end.at >= self.at, "not recorded"
            return (end.at - self.at) * 1e3

    class CUDAGraph:
        held: list[Work] | None = None

        def replay(self):
            assert self.held is not None, "nothing was captured"
            fake.now += LAUNCH
            fake.notes.append("replay")
            for work in self.held:
                fake.work(work.name, work.seconds)

    @contextmanager
    def device(device):
        before, fake.current = fake.current, index_of(device, fake)
        yield
        fake.current = before

    @contextmanager
    def stream(stream):
        before = fake.current, fake.streams[stream.device]
        previous = fake.streams[fake.current]
        fake.current, fake.streams[stream.device] = stream.device, stream
        try:
            yield
        finally:
            fake.current, fake.streams[stream.device] = before
            fake.streams[fake.current] = previous

    class graph:  # noqa: N801 (torch's name)
        def __init__(self, cuda_graph, pool=None, stream=None, capture_error_mode="global"):
            assert stream is not None, "else torch takes the first device's, whatever is current"
            assert capture_error_mode in ("global", "thread_local", "relaxed")
            self.graph, self.stream = cuda_graph, stream

        def __enter__(self):
            assert fake.current == self.stream.device and fake.capture is None
            self.before, fake.streams[fake.current] = fake.streams[fake.current], self.stream
            fake.capture, fake.broken = [], False

        def __exit__(self, *error):
            held, fake.capture = fake.capture, None
            if fake.broken:  # torch's capture_end raises, and its stream stays behind
                raise RuntimeError("operation failed due to a previous error during capture")
            self.graph.held, fake.streams[fake.current] = held, self.before

    def synchronize(device=None):
        if fake.capture is not None:
            fake.broken = True
            raise RuntimeError("operation not permitted when stream is capturing")
        fake.notes.append(f"synchronize {index_of(device, fake)}")

    properties = SimpleNamespace(
        L2_cache_size=L2_BYTES, multi_processor_count=132, uuid="fake", name="Fake H200",
        shared_memory_per_block_optin=232448, total_memory=1 << 37, major=9, minor=0,
    )  # fmt: skip
    return {
        "CUDAGraph": CUDAGraph,
        "Event": Event,
        "Stream": lambda device=None: FakeStream(index_of(device, fake)),
        "current_device": lambda: fake.current,
        "current_stream": lambda device=None: fake.streams[index_of(device, fake)],
        "device": device,
        "device_count": lambda: 2,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "Fake H200",
        "get_device_properties": lambda device=None: properties,
        "graph": graph,
        "is_available": lambda: True,
        "mem_get_info": lambda device=None: (1 << 33, 1 << 37),
        "set_device": lambda device: setattr(fake, "current", index_of(device, fake)),
        "stream": stream,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
    }


class OnCpu(TorchFunctionMode):
    """What is asked for on a GPU is made on the CPU, and takes time on the fake's clock."""

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self._fake = fake

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if not name.startswith("__") and function is not torch.device:
            times = {"fill_": WRITE, "sum": READ}
            self._fake.work(name, times.get(name, OTHER))
        return function(*map(_here, args), **{key: _here(value) for key, value in kwargs.items()})


def _here(value: object) -> object:
    is_gpu = isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cpu") if is_gpu else value


@contextmanager
def profiled(fake: FakeCuda) -> Iterator[SimpleNamespace]:
    """A profile of what runs within the block, as torch.profiler's."""
    start, before = len(fake.done), fake.now

    def event(kind, microseconds):
        span = SimpleNamespace(elapsed_us=lambda: microseconds)
        return SimpleNamespace(device_type=kind, time_range=span)

    kinds = torch.autograd.DeviceType
    found = SimpleNamespace(events=lambda: [])
    yield found
    total = [event(kinds.CUDA, (fake.now - before) * 1e6), event(kinds.CPU, 1e9)]
    found.events = lambda: total if len(fake.done) > start else []
