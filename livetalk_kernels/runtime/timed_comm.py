"""A communicator that records its exchanges in a timeline: posting, and waiting.

An exchange costs a rank the time to post its messages and the time until it may continue; anything
in between is hidden. On a GPU the latter is how long the current stream stalls.
"""

from collections.abc import Sequence
from types import MappingProxyType

from torch import Tensor

from .comm import Communicator, Messages, Pending, Reduction
from .timeline import Range, Timeline

COMMUNICATION = "communication"
ABOUT = MappingProxyType({"part": COMMUNICATION})
"""Metadata of such a range."""


class TimedCommunicator(Communicator):
    """Wraps another communicator and records it; ranges are named by the kind."""

    def __init__(self, inner: Communicator, timeline: Timeline) -> None:
        """Communicate through ``inner``, and count in its `traffic`."""
        super().__init__(inner.rank, inner.size, inner.traffic)
        self._inner, self._timeline = inner, timeline

    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """See `Communicator.exchange`."""
        with self._range(kind):
            pending = self._inner.exchange(send, receive, kind=kind)
        return _TimedPending(pending, self._range(kind))

    def all_reduce(self, x: Tensor, reduction: Reduction, *, kind: str = "reduce") -> Tensor:
        """See `Communicator.all_reduce`."""
        with self._range(kind):
            return self._inner.all_reduce(x, reduction, kind=kind)

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """See `Communicator.broadcast`."""
        with self._range(kind):
            return self._inner.broadcast(x, source, kind=kind)

    def split(self, groups: Sequence[Sequence[int]]) -> Communicator:
        """Split as `Communicator.split` does; a rank alone has nothing to record."""
        part = self._inner.split(groups)
        return part if part.size == 1 else TimedCommunicator(part, self._timeline)

    def barrier(self) -> None:
        """See `Communicator.barrier`."""
        with self._range("barrier"):
            self._inner.barrier()

    def _range(self, kind: str) -> Range:
        return self._timeline.range(kind, about=ABOUT)


class _TimedPending(Pending):
    """Wraps a pending exchange, and records its wait once."""

    def __init__(self, inner: Pending, waiting: Range) -> None:
        super().__init__()
        self._inner: Pending | None = inner
        self._waiting = waiting

    def wait(self) -> None:
        """See `Pending.wait`."""
        inner, self._inner = self._inner, None
        if inner is not None:
            with self._waiting:
                inner.wait()
