"""Simulates GPUs, so that CUDA code paths execute on a CPU, call by call.

    with FakeCuda() as gpus:
        main()  # sees cuda:0
    gpus.calls["synchronize"]

A tensor "on a GPU" is a plain CPU tensor whose storage is recorded as the GPU's. A torch function
mode intercepts every call with its arguments, in all threads: it performs on the CPU what is
requested of a GPU, claims that the result is on the GPU, and adds the call's time to a clock of its
own, or records it in the graph being captured. The parts of ``torch.cuda`` that livetalk uses are
replaced by counting functions and classes with the parameters of the real ones.

It detects names and arguments that torch does not know, tensors of two devices in one call, GPU
memory read as if it were the host's, and whatever breaks a capture: synchronising, copies to and
from memory that is not pinned, and relying on results that a capture only records. It knows nothing
of kernels, stream order, memory or real time, and checks no devices in a backward pass.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..backends.triton_launch import Launch
from .fake_cuda_classes import (
    Capture,
    CUDAGraph,
    Event,
    Generator,
    Stream,
    Work,
    graph,
    profile,
    tensors_in,
)
from .fake_kernels import KERNELS
from .fake_nccl import FakeNccl

NAME = "Fake H200"
UUID = "00000000-0000-0000-0000-000000000000"  # followed by the GPU's number
CAPABILITY = (9, 0)
L2_BYTES = 1 << 16
MEMORY = 1 << 37
WRITE, READ, OTHER = 30e-6, 20e-6, 1e-6  # seconds: the halves of a flush, and any other call
SECONDS = {"fill_": WRITE, "sum": READ}

CPU = torch.device("cpu")
OURS = "livetalk"  # operators whose kernels may be Python, which also sees the GPU
# Functions that accept tensors of two devices: the result is on the first one's.
CROSSING = {"copy_", "to", "__getitem__", "__setitem__", "index_put_", "set_", "tensor"}
CROSSING |= {".data", "_has_compatible_shallow_copy_type", "__deepcopy__"}
MOVES = {"to", "cpu", "cuda"}
# Functions that copy values to the host, which waits for the GPU.
WAITING = {
    *("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__repr__", "__format__"),
    *("nonzero", "equal", "is_nonzero", "allclose", "masked_select", "unique", "cpu"),
}
FROM_HOST = {"tensor", "as_tensor"}
# Functions that only query, as attributes do: they are called most.
ASKING = {
    *("dim", "size", "numel", "stride", "storage_offset", "element_size", "untyped_storage"),
    *("data_ptr", "is_contiguous", "is_floating_point", "is_inference", "nelement", "__len__"),
    "_parse_to",  # the arguments of a module's `to`
}
TO_NUMPY = {"numpy", "__array__"}
CAPTURING = "CUDA error: operation not permitted when stream is capturing"


class _Thread(threading.local):
    """What torch keeps per thread: current device and streams, and the capture."""

    def __init__(self, streams: "list[Stream]") -> None:
        self.current, self.streams = 0, list(streams)
        self.capture: Capture | None = None


class FakeCuda:
    """The GPUs of a ``with`` block.

    Attributes:
        count: Number of GPUs.
        calls: Number of calls of each function and method, by name.
        notes: Calls that wait, replay or mark, in order.
        now: Seconds on the GPUs' clock.
        done: (name, device) of what was executed, in order.
    """

    def __init__(self, count: int = 1) -> None:
        """Prepare the GPUs; nothing is replaced yet."""
        self.count = count
        self.calls: Counter[str] = Counter()
        self.notes: list[str] = []
        self.now = 0.0
        self.done: list[tuple[str, int]] = []
        self.home: WeakKeyDictionary[torch.UntypedStorage, int] = WeakKeyDictionary()
        self.pinned: WeakSet[torch.UntypedStorage] = WeakSet()
        self.bound = {
            kind.__name__: type(kind.__name__, (kind,), {"gpus": self})
            for kind in (Stream, Event, CUDAGraph, graph, Generator, profile)
        }
        self._thread = _Thread([self.bound["Stream"](index) for index in range(count)])
        self._exits = ExitStack()

    @property
    def current(self) -> int:
        """Index of the current device."""
        return self._thread.current

    @current.setter
    def current(self, index: int) -> None:
        self._thread.current = index

    @property
    def streams(self) -> "list[Stream]":
        """The current stream of each device."""
        return self._thread.streams

    @property
    def capture(self) -> "Capture | None":
        """The capture in progress in this thread."""
        return self._thread.capture

    @capture.setter
    def capture(self, capture: "Capture | None") -> None:
        self._thread.capture = capture

    def __enter__(self) -> Self:
        """Patch torch, in this thread and in those that it starts."""
        for path, fake in self.replacements().items():
            *folders, name = path.split(".")
            owner: Any = torch
            for folder in folders:
                owner = getattr(owner, folder)
            self._replace(owner, name, fake)
        launch = Launch.__call__
        self._replace(Launch, "__call__", lambda this: self._launch(partial(launch, this), this))
        before = threading.getprofile()
        self._exits.callback(lambda: threading.setprofile(before))
        threading.setprofile(self._begin_thread)
        self._exits.enter_context(_Mode(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore torch."""
        self._exits.close()

    def _replace(self, owner: Any, name: str, fake: Any) -> None:
        """Set an attribute until the block ends."""
        self._exits.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, fake)

    def _begin_thread(self, *event: object) -> None:
        """Called as a profiler at the start of a thread, which offers no other hook."""
        sys.setprofile(None)
        _Mode(self).__enter__()

    def index(self, device: Any = None) -> int:
        """Return the index of a device.

        Raises:
            RuntimeError: As torch: there is no such GPU.
        """
        if isinstance(device, str):
            device = torch.device(device)
        index = device.index if isinstance(device, torch.device) else device
        index = self.current if index is None else index
        if not 0 <= index < self.count:
            raise RuntimeError(f"CUDA error: invalid device ordinal: {device}")
        return int(index)

    def device_of(self, tensor: Tensor) -> torch.device:
        """Return the device that a tensor claims to be on."""
        if tensor.device.type != "cpu":
            return tensor.device  # meta
        index = self.home.get(tensor.untyped_storage())
        return CPU if index is None else torch.device("cuda", index)

    def work(self, name: str, seconds: float, again: Callable[[], object] | None = None) -> None:
        """Execute work, or record it in the capture."""
        if self.capture is not None:
            self.capture.work.append(Work(name, seconds, again))
            return
        self.now += seconds
        self.done.append((name, self.current))

    def refuse_in_capture(self, name: str) -> None:
        """Fail if this thread is capturing, for calls that break a capture.

        Raises:
            RuntimeError: It is.
        """
        if self.capture is not None:
            self.capture.broken = True
            raise RuntimeError(f"{CAPTURING}: {name}")

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Perform one torch call on the CPU.

        Raises:
            RuntimeError: As on a GPU: tensors of two devices, or a call that cannot be captured.
            TypeError: GPU memory is read as an array.
        """
        name = _name(function)
        if name in ANSWERS:
            self.calls[name] += 1
            return ANSWERS[name](self, *args, **kwargs)
        if name in ASKING or (name.startswith(".") and len(args) == 1):
            found = function(*args, **kwargs)
            if name == ".grad" and found is not None and args[0].untyped_storage() in self.home:
                self.home[found.untyped_storage()] = self.home[args[0].untyped_storage()]
            return found
        tensors = tensors_in(args, kwargs)
        homes = [self.device_of(tensor) for tensor in tensors]
        asked = self._asked(name, args, kwargs)
        place = asked or next((home for home in homes if home.type == "cuda"), CPU)
        if asked is None and name in CROSSING and homes:
            place = homes[0]
        if place.type != "cuda" and not any(home.type == "cuda" for home in homes):
            return self._on_host(function, args, kwargs)
        self._check(name, tensors, homes, place, kwargs)
        args, kwargs = _on_cpu(args, name=name), _on_cpu(kwargs, name=name)
        run = partial(KERNELS.get(function, function), *args, **kwargs)
        read = {tensor.untyped_storage() for tensor in tensors if tensor.device == CPU}
        if self.capture is not None:
            self.capture.keep(read)
        result = run()
        if name in MOVES and place != homes[0] and result.untyped_storage() in read:
            result = result.clone()
        made = tensors_in(result)
        fresh = [x for x in made if x.device == CPU and x.untyped_storage() not in read]
        for tensor in fresh:
            if place.type == "cuda":
                self.home[tensor.untyped_storage()] = self.index(place)
        if (made or result is None) and not name.startswith("."):  # else an attribute was set
            if self.capture is not None:
                self.capture.made.update(tensor.untyped_storage() for tensor in fresh)
            self.work(name, SECONDS.get(name, OTHER), partial(_again, run, result, fresh))
        return result

    def _launch(self, run: Callable[[], None], launch: Launch) -> None:
        """Run a Triton kernel, which only its interpreter can do, on plain CPU tensors."""
        self.calls["launch"] += 1
        with torch._C.DisableTorchFunction():
            tensors = tensors_in(*launch.arguments.values())
            homes = {self.device_of(tensor) for tensor in tensors}
            if homes - {torch.device("cuda", self.current)}:
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            if self.capture is not None:
                self.capture.keep(tensor.untyped_storage() for tensor in tensors)
            run()
        self.work("launch", OTHER, partial(_again, run, None, []))

    def _asked(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> torch.device | None:
        """Return the device that a call names."""
        if name in ("cpu", "cuda"):
            return CPU if name == "cpu" else torch.device("cuda", self.index(*args[1:2]))
        given: list[Any] = [value for value in args if isinstance(value, torch.device)]
        given += [kwargs["device"]] if kwargs.get("device") is not None else []
        if name == "to" and len(args) > 1 and isinstance(args[1], str | Tensor):
            other = args[1]
            given.append(self.device_of(other) if isinstance(other, Tensor) else other)
        if not given:
            return None
        device = given[0] if isinstance(given[0], int) else torch.device(given[0])
        if isinstance(device, int) or device.type == "cuda":
            return torch.device("cuda", self.index(device))
        return device

    def _check(
        self, name: str, tensors: list[Tensor], homes: list[torch.device], place: torch.device,
        kwargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        if name in TO_NUMPY:
            raise TypeError(f"can't convert {homes[0]} device type tensor to numpy")
        mixed = {
            home for tensor, home in zip(tensors, homes, strict=True) if tensor.ndim or home != CPU
        }
        first_on_host = name == "__getitem__" and homes[0] == CPU
        backward = torch._C._current_graph_task_id() >= 0  # whose tensors the mode does not see
        if len(mixed) > 1 and (name not in CROSSING or first_on_host) and not backward:
            found = ", ".join(map(str, sorted(mixed, key=str)))
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{found}: {name}"
            )
        generator = kwargs.get("generator")
        if generator is not None:
            if generator.device.type != place.type:
                raise RuntimeError(
                    f"Expected a '{place.type}' device type for generator but found "
                    f"'{generator.device.type}'"
                )
            self.refuse_in_capture("random numbers of a generator that the graph does not know")
        crossing = len({*mixed, place}) > 1 and not all(
            tensor.untyped_storage() in self.pinned
            for tensor, home in zip(tensors, homes, strict=True)
            if home == CPU and tensor.ndim
        )
        if name in WAITING or name in FROM_HOST or (name in CROSSING and crossing):
            self.refuse_in_capture(name)

    def _on_host(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Perform a call on the host alone, whose memory may be pinned: that takes a driver."""
        if not kwargs.get("pin_memory"):
            return function(*args, **kwargs)
        result = function(*args, **{**kwargs, "pin_memory": False})
        self.pinned.add(result.untyped_storage())
        return result

    def _pin(self, tensor: Tensor) -> Tensor:
        if self.device_of(tensor) != CPU:
            raise RuntimeError("cannot pin a tensor that is not on the CPU")
        pinned = tensor.clone()
        self.pinned.add(pinned.untyped_storage())
        return pinned

    def replacements(self) -> dict[str, Any]:
        """Map names below ``torch`` to substitutes with the same parameters."""
        known = self.index

        def synchronize(device: Any = None) -> None:
            self.refuse_in_capture("synchronize")
            self.notes.append(f"synchronize {known(device)}")

        def set_device(device: Any) -> None:
            self.current = known(device)

        @contextmanager
        def device(device: Any) -> Iterator[None]:
            before, self.current = self.current, known(device)
            try:
                yield
            finally:
                self.current = before

        @contextmanager
        def stream(stream: Stream) -> Iterator[None]:
            before = self.current, list(self.streams)
            self.current, self.streams[stream.index] = stream.index, stream
            try:
                yield
            finally:
                self.current, self.streams[:] = before

        @contextmanager
        def marked(msg: str) -> Iterator[None]:
            self.notes.append(msg)
            yield

        def record_stream(tensor: Tensor, s: Stream) -> None:
            assert isinstance(s, Stream) and self.device_of(tensor).type == "cuda"

        def push(msg: str) -> None:
            self.notes.append(msg)

        def properties(device: Any = None) -> SimpleNamespace:
            return SimpleNamespace(
                L2_cache_size=L2_BYTES,
                major=CAPABILITY[0],
                minor=CAPABILITY[1],
                multi_processor_count=132,
                name=NAME,
                shared_memory_per_block=49152,
                shared_memory_per_block_optin=232448,
                total_memory=MEMORY,
                uuid=f"{UUID[:-1]}{known(device)}",
            )

        def of_device(value: Callable[[int], Any]) -> Callable[..., Any]:
            return lambda device=None: value(known(device))

        functions: dict[str, Callable[..., Any]] = {
            "Tensor.record_stream": record_stream,
            "backends.cudnn.is_available": lambda: True,
            "backends.cudnn.version": lambda: 91900,
            "cuda.can_device_access_peer": lambda device, peer_device: False,
            "cuda.current_device": lambda: self.current,
            "cuda.current_stream": of_device(lambda index: self.streams[index]),
            "cuda.device": device,
            "cuda.device_count": lambda: self.count,
            "cuda.empty_cache": lambda: None,
            "cuda.get_device_capability": of_device(lambda index: CAPABILITY),
            "cuda.get_device_name": of_device(lambda index: NAME),
            "cuda.get_device_properties": properties,
            "cuda.is_available": lambda: True,
            "cuda.max_memory_allocated": of_device(lambda index: 1 << 20),
            "cuda.max_memory_reserved": of_device(lambda index: 1 << 20),
            "cuda.mem_get_info": of_device(lambda index: (MEMORY >> 4, MEMORY)),
            "cuda.memory_allocated": of_device(lambda index: 1 << 19),
            "cuda.nccl.version": lambda: (2, 28, 3),
            "cuda.nvtx.range": marked,
            "cuda.nvtx.range_pop": lambda: 0,
            "cuda.nvtx.range_push": push,
            "cuda.profiler.start": partial(self.notes.append, "start"),
            "cuda.profiler.stop": partial(self.notes.append, "stop"),
            "cuda.reset_peak_memory_stats": of_device(lambda index: None),
            "cuda.set_device": set_device,
            "cuda.stream": stream,
            "cuda.synchronize": synchronize,
            "profiler.supported_activities": lambda: {torch.profiler.ProfilerActivity.CUDA},
            **FakeNccl(self).replacements(),
        }
        counted = {
            path: self._counted(path.rpartition(".")[2], function)
            for path, function in functions.items()
        }
        classes = {
            "cuda.CUDAGraph": self.bound["CUDAGraph"],
            "cuda.Event": self.bound["Event"],
            "cuda.Stream": self.bound["Stream"],
            "cuda.graph": self.bound["graph"],
            "profiler.profile": self.bound["profile"],
            "Generator": self.bound["Generator"],
        }
        return {**counted, **classes, "version.cuda": "13.0"}

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return function(*args, **kwargs)

        call.__wrapped__ = function  # type: ignore[attr-defined]  # inspect.signature looks there
        return call


class _Mode(TorchFunctionMode):
    """Routes all torch calls in a thread to the GPUs."""

    def __init__(self, gpus: FakeCuda) -> None:
        super().__init__()
        self._gpus = gpus

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        if getattr(function, "namespace", "") == OURS:  # an operator, whose kernel may be Python
            if any(tensor.device != CPU for tensor in tensors_in(args, kwargs)):  # meta, or traced
                return function(*args, **kwargs)
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return function.redispatch(keys, *args, **kwargs)
        return self._gpus.call(function, args, kwargs)


ANSWERS: Mapping[str, Callable[..., Any]] = {
    ".device": lambda gpus, tensor, *_: gpus.device_of(tensor),
    ".is_cpu": lambda gpus, tensor, *_: gpus.device_of(tensor) == CPU,
    ".is_cuda": lambda gpus, tensor, *_: gpus.device_of(tensor).type == "cuda",
    "get_device": lambda gpus, tensor: gpus.home.get(tensor.untyped_storage(), -1),
    "is_pinned": lambda gpus, tensor: tensor.untyped_storage() in gpus.pinned,
    "pin_memory": lambda gpus, tensor: gpus._pin(tensor),
}
"""Functions whose results are known without computation."""


def _name(function: Any) -> str:
    """Name a torch function; attributes start with a dot."""
    name = str(getattr(function, "__name__", function))
    if name in ("__get__", "__set__"):
        return f".{function.__self__.__name__}"
    return name.partition(".")[0]


def _on_cpu(given: Any, *, name: str) -> Any:
    """Replace every device in the arguments by the CPU."""

    def here(value: Any) -> Any:
        text = isinstance(value, str) and name == "to"
        return CPU if text or (isinstance(value, torch.device) and value.type == "cuda") else value

    if isinstance(given, tuple):
        return tuple(map(here, given))
    found = {key: here(value) for key, value in given.items() if key != "pin_memory"}
    return {**found, "device": CPU} if found.get("device") is not None else found


def _again(run: Callable[[], Any], result: Any, fresh: list[Tensor]) -> None:
    """Repeat a call, and write the new values to its first results."""
    with torch._C.DisableTorchFunction(), torch.inference_mode():
        for old, new in zip(tensors_in(result), tensors_in(run()), strict=True):
            if any(old is tensor for tensor in fresh):
                old.copy_(new)
