"""Work beside the main one: on a side stream of a GPU, in a thread, or, for no gain, at once.

The numbers do not depend on where work runs: the same functions see the same tensors. What depends
on it is when, and from which memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .timeline import MAIN

T = TypeVar("T")
BESIDE = "beside"
"""Name of a lane that is not the main one."""


class Handle(ABC, Generic[T]):
    """Work that was sent to a lane."""

    @abstractmethod
    def result(self) -> T:
        """What the work returned, ready for use by the caller's current stream.

        Raises:
            Exception: The work raised it.
        """


class Lane(ABC):
    """Does one work after the other, in the order in which they were submitted.

    Attributes:
        name: Of the lane in the timeline.
        concurrent: Whether work really runs beside the caller's.
    """

    name: str = BESIDE
    concurrent: bool = True

    @abstractmethod
    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """Do work, without gradients.

        Args:
            work: What to do; its tensors and those in its result are the same on every lane.
            given: Tensors, or objects that hold them, which the work reads and the caller's
                current stream makes. The work waits for them, and for nothing if there are none.

        Returns:
            Its handle. An error of the work is raised here or by ``result``.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let what is running end, and drop the rest. Closing twice does no harm."""


class InlineLane(Lane):
    """Work is done when it is submitted."""

    name = MAIN
    concurrent = False

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """See the base class."""
        with torch.inference_mode():
            return _Done(work())


class ThreadLane(Lane):
    """Work is done by one thread, with as many threads of torch's own as the caller has."""

    def __init__(self) -> None:
        """Start no thread yet."""
        threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            1, thread_name_prefix=BESIDE, initializer=torch.set_num_threads, initargs=(threads,)
        )

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """See the base class."""
        assert self._pool is not None, "the lane is closed"
        return _InThread(self._pool.submit(_without_gradients, work))

    def close(self) -> None:
        """See the base class."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


class StreamLane(Lane):
    """Work is launched at once, on a CUDA stream of its own. Untested on a GPU.

    The stream's tensors come from memory of their own, which the allocator keeps for it: what runs
    here adds its peak to that of the main stream, whether or not the two coincide.
    """

    def __init__(self, device: torch.device) -> None:
        """Make the stream."""
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """See the base class."""
        tensors = list(held_tensors(given))
        if tensors:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in tensors:
            tensor.record_stream(self._stream)  # its memory stays until this stream is past it
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            value = work()
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return _OnStream(value, ready, self._device)


def open_lane(device: torch.device) -> Lane:
    """The lane that is worth it on a device.

    On a GPU a side stream fills what the main one leaves idle. On a CPU torch's threads keep every
    core busy already; one more competes with them and delays the next frame: all is done inline.
    """
    return StreamLane(device) if device.type == "cuda" else InlineLane()


def held_tensors(value: object) -> Iterator[Tensor]:
    """The CUDA tensors in tuples, lists, mappings and attributes of objects, once each."""
    seen: set[int] = set()
    left = [value]
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        match part:
            case Tensor():
                if part.is_cuda:
                    yield part
            case Mapping():
                left += part.values()
            case tuple() | list():
                left += part
            case _ if hasattr(part, "__dict__") and not callable(part):
                left += vars(part).values()


def _without_gradients(work: Callable[[], T]) -> T:
    with torch.inference_mode():  # each thread has its own switch
        return work()


class _Done(Handle[T]):
    def __init__(self, value: T) -> None:
        self._value = value

    def result(self) -> T:
        return self._value


class _InThread(Handle[T]):
    def __init__(self, future: "Future[T]") -> None:
        self._future = future

    def result(self) -> T:
        return self._future.result()


class _OnStream(Handle[T]):
    """Untested on a GPU."""

    def __init__(self, value: T, ready: torch.cuda.Event, device: torch.device) -> None:
        self._value, self._ready, self._device = value, ready, device

    def result(self) -> T:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._ready)
        for tensor in held_tensors(self._value):
            tensor.record_stream(stream)
        return self._value
