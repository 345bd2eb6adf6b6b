"""Runs work concurrently: on a CUDA side stream, in a thread, or inline as a fallback.

Results do not depend on where work runs: the same functions see the same tensors. Only its timing
and the memory it uses do.
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
"""Name of the side lane."""


class Handle(ABC, Generic[T]):
    """Work submitted to a lane."""

    @abstractmethod
    def result(self) -> T:
        """Return the result of the work, ready for use on the caller's current stream.

        Raises:
            Exception: The work raised it.
        """


class Lane(ABC):
    """Runs work sequentially, in order of submission.

    Attributes:
        name: Name of the lane in the timeline.
        concurrent: Whether work really runs concurrently with the caller's.
    """

    name: str = BESIDE
    concurrent: bool = True

    @abstractmethod
    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """Run work, without gradients.

        Args:
            work: Function to run; its tensors and those in its result are the same on every lane.
            given: Tensors, or objects that contain them, that the work reads and the caller's
                current stream computes. The work waits for them, and for nothing if there are none.

        Returns:
            Its handle. An error in the work is raised here or by ``result``.
        """

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let running work finish, and drop the rest; closing twice is harmless."""


class InlineLane(Lane):
    """Runs work on submission."""

    name = MAIN
    concurrent = False

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """Run the work now."""
        with torch.inference_mode():
            return _Done(work())


class ThreadLane(Lane):
    """Runs work in one thread, with as many torch threads as the caller has."""

    def __init__(self) -> None:
        """Prepare; no thread is started yet."""
        threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(
            1, thread_name_prefix=BESIDE, initializer=torch.set_num_threads, initargs=(threads,)
        )

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """Queue the work for the thread."""
        assert self._pool is not None, "the lane is closed"
        return _InThread(self._pool.submit(_without_gradients, work))

    def close(self) -> None:
        """End the thread."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


class StreamLane(Lane):
    """Launches work immediately, on its own CUDA stream.

    The allocator reserves memory for the stream: the peak of its work adds to that of the main
    stream, whether or not the two coincide.
    """

    def __init__(self, device: torch.device) -> None:
        """Create the stream."""
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def submit(self, work: Callable[[], T], *given: object) -> Handle[T]:
        """Launch the work on the stream."""
        tensors = list(held_tensors(given))
        if tensors:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in tensors:
            tensor.record_stream(self._stream)  # keeps its memory until this stream is past it
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            value = work()
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return _OnStream(value, ready, self._device)


def open_lane(device: torch.device) -> Lane:
    """Open the lane that pays off on a device.

    On a GPU a side stream uses what the main one leaves idle. On a CPU torch's threads already
    occupy every core; another thread would compete and delay the next frame, so work runs inline.
    """
    return StreamLane(device) if device.type == "cuda" else InlineLane()


def held_tensors(value: object) -> Iterator[Tensor]:
    """Yield the CUDA tensors in tuples, lists, mappings and attributes of objects, once each."""
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
    """Work on a stream, and the event that marks its end."""

    def __init__(self, value: T, ready: torch.cuda.Event, device: torch.device) -> None:
        self._value, self._ready, self._device = value, ready, device

    def result(self) -> T:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._ready)
        for tensor in held_tensors(self._value):
            tensor.record_stream(stream)
        return self._value
