"""A stand-in for an NVIDIA GPU, so that code for one is walked through on a CPU, call by call.

    with FakeCuda() as gpu:
        main()  # sees one GPU, cuda:0
    gpu.calls["synchronize"]

Within the block tensors on ``cuda:0`` exist (`GpuTensor`), which compute on the CPU; what livetalk
calls of ``torch.cuda`` is replaced by functions and classes of the same signatures, which count;
and a CUDA graph keeps what is computed while it is captured, and does it again when replayed.

It finds names and arguments that torch does not know, tensors of two devices in one operation,
memory of a GPU read on the host, and what a capture forbids: waiting for the GPU, and copies
between it and the host. It says nothing of kernels, which do not run, of the order of streams, or
of time. It replaces parts of torch for the whole process: use it in one of its own.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
CAPABILITY = (9, 0)
MEMORY = 1 << 30  # bytes; small, so that what fills a share of it is small
ATEN: Any = torch.ops.aten
FACTORIES = {
    "empty.memory_format": ATEN.empty.memory_format,
    "empty_strided": ATEN.empty_strided.default,
    "arange": ATEN.arange.default,
    "arange.start": ATEN.arange.start,
    "arange.start_step": ATEN.arange.start_step,
}
"""Operations that make tensors from nothing; torch makes all others of them."""
EMPTY = ("empty.memory_format", "empty_strided")
# What may take tensors of both devices.
CROSSING: tuple[str, ...] = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_")
CROSSING += ("__getitem__", "__setitem__")
# torch looks for a GPU's kernel before it takes these apart.
WHOLE = (functional.scaled_dot_product_attention,)
NOT_LINKED = "not linked with support for cuda"
WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")
CAPTURING = "CUDA error: operation not permitted when stream is capturing"

Job = tuple[Callable[..., Any], Any, Any, list[Tensor], list[Tensor]]
"""Operation, arguments, keywords, inputs, outputs; all on the CPU."""


class GpuTensor(Tensor):
    """A tensor that says it is on ``cuda:0``.

    Attributes:
        host: Its values, on the CPU.
        gpu: The GPU.
    """

    host: Tensor
    gpu: "FakeCuda"

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: "FakeCuda") -> "GpuTensor":
        """Around a tensor on the CPU, whose memory it shares."""
        make: Any = torch.Tensor._make_wrapper_subclass
        out: GpuTensor = make(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        out.host, out.gpu = inner, gpu
        return out

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """As a plain tensor; what torch cannot begin without CUDA is one operation here."""
        kwargs = kwargs or {}
        if func not in WHOLE:
            try:
                return torch._C._disabled_torch_function_impl(func, types, tuple(args), kwargs)
            except RuntimeError as error:
                if NOT_LINKED not in str(error):
                    raise
        return _gpu_of((args, kwargs)).run(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Every operation, by the GPU."""
        return _gpu_of((args, kwargs)).run(func, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        """The CPU's: its address tells storages apart."""
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        """The CPU's."""
        return self.host.data_ptr()

    def record_stream(self, stream: Any) -> None:
        """Nothing: memory is not shared between streams here."""
        assert isinstance(stream, Stream)
        self.gpu.calls["record_stream"] += 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "GpuTensor":
        """A copy."""
        return GpuTensor(self.host.clone(), self.gpu)


def _gpu_of(tree: Any) -> "FakeCuda":
    return next(x.gpu for x in tree_flatten(tree)[0] if isinstance(x, GpuTensor))


class Stream:
    """`torch.cuda.Stream`; all are one queue."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        """Of a device."""
        self.device, self.cuda_stream = DEVICE, 0
        if device is not None:
            _check(device)

    def wait_stream(self, stream: "Stream") -> None:
        """Nothing to wait for."""
        assert isinstance(stream, Stream)

    def wait_event(self, event: "Event") -> None:
        """Nothing to wait for."""
        assert isinstance(event, Event)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record one."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """All is done."""
        return True

    def synchronize(self) -> None:
        """All is done."""


class Event:
    """`torch.cuda.Event`, by the host's clock."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        """Not recorded."""
        self._timed, self._at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Now."""
        self._at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It is past."""
        return True

    def synchronize(self) -> None:
        """It is past."""

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds to another.

        Raises:
            RuntimeError: As torch, where one of them keeps no time or was not recorded.
        """
        if not (self._timed and end_event._timed and self._at and end_event._at):
            raise RuntimeError("Both events must be recorded, with enable_timing=True.")
        return max(1e-6, (end_event._at - self._at) * 1e3)


class FakeCuda:
    """One GPU, for a ``with`` block.

    Attributes:
        calls: How often each function, class or graph operation was called.
    """

    def __init__(self) -> None:
        """Nothing is replaced yet."""
        self.calls: Counter[str] = Counter()
        self._capture: list[Job] | None = None
        self._streams = [Stream()]
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Replace what torch has."""
        with torch.device("meta"):
            torch.empty(0)  # torch notes which functions heed such a block: its own, not ours
        library = torch.library.Library("aten", "IMPL")
        self._exits.callback(library._destroy)
        for name, operation in FACTORIES.items():
            library.impl(name, self._factory(name, operation), "CUDA")
        for path, fake in self.replacements().items():
            *folders, name = path.split(".")
            owner: Any = torch
            for folder in folders:
                owner = getattr(owner, folder)
            self._exits.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, self._counted(name, fake))
        torch.empty(0, device=DEVICE)  # torch imports for a while what such operations need
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give back what torch had."""
        self._exits.close()

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One operation, on the CPU.

        Raises:
            RuntimeError: As on a GPU: tensors of two devices, or what no capture may hold.
        """
        where = kwargs.get("device")
        stays = where is None or torch.device(where).type == "cuda"
        kwargs = {**kwargs, **({} if where is None else {"device": CPU})}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        self._check(func, tensors, stays=stays)
        known = {id(x.host): x for x in tensors if isinstance(x, GpuTensor)}
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        func = SUBSTITUTES.get(func, func)
        result = func(*inner_args, **inner_kwargs)
        self._keep(func, inner_args, inner_kwargs, result)

        def outer(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in known:  # in place
                return known[id(value)]
            return GpuTensor(value, self) if stays else value

        return tree_map(outer, result)

    def _check(self, func: Any, tensors: Sequence[Tensor], *, stays: bool) -> None:
        name = str(getattr(func, "name", lambda: func.__name__)()).partition(".")[0]
        here = [x for x in tensors if not isinstance(x, GpuTensor) and x.ndim]
        if here and name not in CROSSING:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and {here[0].device}: {name}"
            )
        crosses = name in CROSSING and (bool(here) or not stays)
        if self._capture is not None and (crosses or name in WAITING):
            raise RuntimeError(f"{CAPTURING}: {name}")

    def _keep(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self._capture is not None:
            inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
            outputs = [x for x in tree_flatten(result)[0] if isinstance(x, Tensor)]
            self._capture.append((func, args, kwargs, inputs, outputs))

    def _factory(self, name: str, operation: Any) -> Callable[..., GpuTensor]:
        def make(*args: Any, **kwargs: Any) -> GpuTensor:
            given = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
            made = operation(*args, **given, device=CPU)
            if name not in EMPTY:
                self._keep(operation, args, {**given, "device": CPU}, made)
            return GpuTensor(made, self)

        return make

    def _counted(self, name: str, fake: Any) -> Any:
        if isinstance(fake, type):
            return fake

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return fake(*args, **kwargs)

        return call

    def replacements(self) -> dict[str, Any]:
        """Name below ``torch`` -> what stands for it, which takes what torch's own takes."""
        gpu = self

        def synchronize(device: Any = None) -> None:
            if gpu._capture is not None:
                raise RuntimeError(CAPTURING)

        def exchange_device(device: int) -> int:
            _check(max(device, 0))
            return 0

        def mem_get_info(device: Any = None) -> tuple[int, int]:
            return MEMORY // 2, MEMORY

        def get_device_properties(device: Any = None) -> SimpleNamespace:
            major, minor = CAPABILITY
            return SimpleNamespace(
                name=gpu.name,
                major=major,
                minor=minor,
                total_memory=MEMORY,
                multi_processor_count=132,
                L2_cache_size=1 << 16,
                shared_memory_per_block=49152,
                shared_memory_per_block_optin=232448,
                uuid="00000000-0000-0000-0000-000000000000",
            )

        @contextlib.contextmanager
        def stream(stream: Stream | None) -> Iterator[None]:
            gpu._streams.append(stream or gpu._streams[-1])
            try:
                yield
            finally:
                gpu._streams.pop()

        def of_device(value: Any) -> Callable[..., Any]:
            def read(device: Any = None) -> Any:
                if device is not None:
                    _check(device)
                return value() if callable(value) else value

            return read

        return {
            "Generator": Generator,
            "empty": _without_pinning(torch.empty),
            "Tensor.to": _indexed(Tensor.to),
            "Tensor.cuda": lambda tensor, device=DEVICE: tensor.to(device),
            "tensor": _by_the_host(torch.tensor),
            "as_tensor": _by_the_host(torch.as_tensor),
            "cuda._lazy_init": lambda: None,
            "cuda.is_available": lambda: True,
            "cuda.device_count": lambda: 1,
            "cuda.current_device": lambda: 0,
            "cuda.set_device": _check,
            "cuda._exchange_device": exchange_device,
            "cuda._maybe_exchange_device": exchange_device,
            "cuda.can_device_access_peer": lambda device, peer_device: False,
            "cuda.get_device_name": of_device(gpu.name),
            "cuda.get_device_capability": of_device(CAPABILITY),
            "cuda.get_device_properties": get_device_properties,
            "cuda.mem_get_info": mem_get_info,
            "cuda.memory_allocated": of_device(0),
            "cuda.max_memory_allocated": of_device(0),
            "cuda.max_memory_reserved": of_device(0),
            "cuda.reset_peak_memory_stats": of_device(None),
            "cuda.empty_cache": lambda: None,
            "cuda.synchronize": synchronize,
            "cuda.current_stream": of_device(lambda: gpu._streams[-1]),
            "cuda.stream": stream,
            "cuda.Stream": Stream,
            "cuda.Event": Event,
            "cuda.CUDAGraph": self._graph_class(),
            "cuda.graph": self._capture_context,
            "cuda.nccl.version": lambda: (2, 28, 0),
        }

    name = "a made-up GPU"

    def _graph_class(self) -> type:
        gpu = self

        class CUDAGraph:
            """`torch.cuda.CUDAGraph`: jobs."""

            def __init__(self, keep_graph: bool = False) -> None:
                self.jobs: list[Job] | None = None

            def pool(self) -> tuple[int, int]:
                return 0, 1

            def replay(self) -> None:
                assert self.jobs is not None, "a graph that was not captured"
                gpu.calls["replay"] += 1
                for job in self.jobs:
                    _again(job)

        return CUDAGraph

    @contextlib.contextmanager
    def _capture_context(
        self,
        cuda_graph: Any,
        pool: Any = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        assert capture_error_mode in ("global", "thread_local", "relaxed") and self._capture is None
        self._capture = []
        try:
            yield
            cuda_graph.jobs = self._capture
        finally:
            self._capture = None


class Generator(torch.Generator):
    """`torch.Generator`, also for the GPU: its numbers are drawn on the CPU."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        """For a device."""
        _check(device)
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


def _without_pinning(empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.empty`, but memory of the host is not pinned: that needs a driver."""

    def call(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return empty(*args, **kwargs)

    return call


def _indexed(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to`, but ``cuda`` is ``cuda:0``: only CUDA's libraries know the current device."""

    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def full(value: Any) -> Any:
            named = isinstance(value, str | torch.device) and str(value) == "cuda"
            return DEVICE if named else value

        return to(tensor, *map(full, args), **{k: full(v) for k, v in kwargs.items()})

    return call


def _by_the_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and `as_tensor`: values are read on the host, then sent."""

    def call(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(data, device=device, **kwargs)
        return make(data, **kwargs).to(device)

    return call


def _check(device: Any) -> None:
    """Refuse a GPU that is not there.

    Raises:
        RuntimeError: As torch does.
    """
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type == "cuda" and (found.index or 0) > 0:
        raise RuntimeError(f"CUDA error: invalid device ordinal: {device}")


def _inner(value: Any) -> Any:
    return value.host if isinstance(value, GpuTensor) else value


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, scale: float | None = None
) -> tuple[Any, ...]:
    """The GPU's operator by the CPU's, which has two of its nine outputs."""
    own = ATEN._scaled_dot_product_flash_attention_for_cpu
    return (*own(query, key, value, *rest[:2], scale=scale), None, None, 0, 0, None, None, None)


SUBSTITUTES = {ATEN._scaled_dot_product_flash_attention.default: _flash_attention}


def _again(job: Job) -> None:
    """Do an operation again, into the memory of its first outputs."""
    func, args, kwargs, inputs, outputs = job
    fresh = [x for x in tree_flatten(func(*args, **kwargs))[0] if isinstance(x, Tensor)]
    read = {x.untyped_storage().data_ptr() for x in inputs}
    for old, new in zip(outputs, fresh, strict=True):
        if old.untyped_storage().data_ptr() not in read:  # else it is a view, or done in place
            old.copy_(new)
