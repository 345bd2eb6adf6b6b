"""Communication between ranks: point-to-point exchanges and a few collectives, counted by purpose.

``torch.distributed`` is the engine: NCCL between GPUs, gloo between CPUs, where small messages
within a machine take a shortcut (`shared_memory`). With one rank there is nothing to send, and
`LocalCommunicator` does nothing.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CommError
from .shared_memory import LARGEST, Delivery, Mailboxes

# A live stream may wait for speech for hours; hung ranks are the watchdog's business.
FOREVER = timedelta(days=365)

Reduction = Literal["sum", "min", "max"]
_REDUCTIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


@contextmanager
def comm_errors() -> Iterator[None]:
    """Turn what torch raises when a rank is lost into a `CommError`."""
    try:
        yield
    except CommError:
        raise
    except RuntimeError as error:
        raise CommError(str(error)) from error


@dataclass
class Traffic:
    """What one rank has sent to others, by purpose (``all_to_all``, ``ring``, ``halo``, ...).

    Attributes:
        bytes: Purpose -> bytes. A reduction counts as one tensor to every other rank, a broadcast
            as one from its source to every other rank.
        messages: Purpose -> number of messages.
    """

    bytes: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, tensor: Tensor, peers: int = 1) -> None:
        """Count a tensor that goes to ``peers`` ranks."""
        self.bytes[kind] += tensor.nbytes * peers
        self.messages[kind] += peers

    def clear(self) -> None:
        """Reset all counters."""
        self.bytes.clear()
        self.messages.clear()


class Pending:
    """An exchange in flight; it keeps its tensors alive until it completes."""

    def __init__(
        self, works: Sequence[dist.Work | Delivery] = (), tensors: Sequence[Tensor] = ()
    ) -> None:
        """Create an exchange with nothing to wait for by default."""
        self._works, self._tensors = list(works), list(tensors)

    def wait(self) -> None:
        """Wait until received data can be read, on a GPU by subsequent work on the current stream.

        Waiting again has no effect.

        Raises:
            CommError: A peer is lost.
        """
        works, self._works = self._works, []
        with comm_errors():
            for work in works:
                work.wait()
        self._tensors = []


Messages = Iterable[tuple[int, Tensor]]


class Communicator(ABC):
    """A group of ranks that call the same methods in the same order.

    Attributes:
        rank: Rank of this process within the group.
        size: Number of ranks in the group.
        traffic: What this rank has sent, shared with groups split off.
    """

    def __init__(self, rank: int, size: int, traffic: Traffic | None = None) -> None:
        """Store rank and size of the group."""
        self.rank, self.size = rank, size
        self.traffic = Traffic() if traffic is None else traffic

    @abstractmethod
    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """Start sending and receiving; several messages between two ranks keep their order.

        Args:
            send: (peer, contiguous tensor) pairs, not to be modified until the wait has returned.
            receive: (peer, contiguous tensor to fill) pairs, with the sender's size and dtype.
                Empty tensors are skipped on both sides.
            kind: Purpose, for `traffic`.
        """

    @abstractmethod
    def all_reduce(self, x: Tensor, reduction: Reduction, *, kind: str = "reduce") -> Tensor:
        """Compute the sum, minimum or maximum over all ranks, in place; return x."""

    @abstractmethod
    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """Fill x with the source's, in place; return x."""

    @abstractmethod
    def split(self, groups: Sequence[Sequence[int]]) -> "Communicator":
        """Return the group among ``groups`` that includes this rank; all ranks pass the same."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks have arrived."""

    def all_gather(self, x: Tensor, sizes: Sequence[int], *, kind: str = "gather") -> Tensor:
        """Concatenate the rows of all ranks, in rank order.

        Args:
            x: [sizes[rank], ...], contiguous.
            sizes: Rows of every rank.
            kind: Purpose, for `traffic`.

        Returns:
            [sum(sizes), ...], fresh.
        """
        assert x.shape[0] == sizes[self.rank] and len(sizes) == self.size
        out = x.new_empty((sum(sizes), *x.shape[1:]))
        parts = out.split(list(sizes))
        others = [peer for peer in range(self.size) if peer != self.rank]
        pending = self.exchange(
            [(peer, x) for peer in others], [(peer, parts[peer]) for peer in others], kind=kind
        )
        parts[self.rank].copy_(x)
        pending.wait()
        return out


class LocalCommunicator(Communicator):
    """A single rank: nothing is sent."""

    def __init__(self) -> None:
        """Be rank 0 of 1."""
        super().__init__(0, 1)

    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """Return at once: there are no peers."""
        assert not list(send) and not list(receive)
        return Pending()

    def all_reduce(self, x: Tensor, reduction: Reduction, *, kind: str = "reduce") -> Tensor:
        """Return x unchanged."""
        return x

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """Return x unchanged."""
        return x

    def split(self, groups: Sequence[Sequence[int]]) -> Communicator:
        """Return itself."""
        return self

    def barrier(self) -> None:
        """Return at once."""


class GroupCommunicator(Communicator):
    """Ranks of a ``torch.distributed`` process group: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic | None = None) -> None:
        """Wrap ``group``, which must include this process."""
        super().__init__(dist.get_rank(group), dist.get_world_size(group), traffic)
        self._group = group
        self._ranks = dist.get_process_group_ranks(group)
        gloo = dist.get_backend(group) == "gloo"
        with comm_errors():
            self._mailboxes = Mailboxes.open(group) if gloo and self.size > 1 else None

    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """See `Communicator.exchange`."""
        send, receive = ([m for m in messages if m[1].numel()] for messages in (send, receive))
        for peer, tensor in (*send, *receive):
            assert peer != self.rank and tensor.is_contiguous()
        for _, tensor in send:
            self.traffic.add(kind, tensor)
        works: list[dist.Work | Delivery] = []
        if self._mailboxes is not None:  # both ends see the same sizes, and so decide alike
            small = [[m for m in ms if m[1].nbytes <= LARGEST] for ms in (send, receive)]
            works.append(self._mailboxes.exchange(*small))
            send, receive = ([m for m in ms if m[1].nbytes > LARGEST] for ms in (send, receive))
        operations = [
            dist.P2POp(act, _plain(tensor), self._ranks[peer], self._group)
            for act, messages in ((dist.isend, send), (dist.irecv, receive))
            for peer, tensor in messages
        ]
        with comm_errors():
            works += dist.batch_isend_irecv(operations) if operations else []
        return Pending(works, [tensor for _, tensor in (*send, *receive)])

    def all_reduce(self, x: Tensor, reduction: Reduction, *, kind: str = "reduce") -> Tensor:
        """See `Communicator.all_reduce`."""
        self.traffic.add(kind, x, self.size - 1)
        with comm_errors():
            dist.all_reduce(x, _REDUCTIONS[reduction], self._group)
        return x

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """See `Communicator.broadcast`."""
        if source == self.rank:
            self.traffic.add(kind, x, self.size - 1)
        with comm_errors():
            dist.broadcast(_plain(x), self._ranks[source], self._group)
        return x

    def split(self, groups: Sequence[Sequence[int]]) -> Communicator:
        """See `Communicator.split`."""
        if all(len(ranks) == 1 for ranks in groups):
            return LocalCommunicator()
        if [list(ranks) for ranks in groups] == [list(range(self.size))]:
            return self
        own: Communicator | None = None
        for ranks in groups:
            with comm_errors():
                members = [self._ranks[rank] for rank in ranks]
                group = dist.new_group(members, timeout=FOREVER)
            if self.rank in ranks:
                own = GroupCommunicator(group, self.traffic)
        assert own is not None, "every rank is in one of the groups"
        return LocalCommunicator() if own.size == 1 else own

    def barrier(self) -> None:
        """See `Communicator.barrier`."""
        self.all_reduce(torch.zeros(1, device=_device(self._group)), "sum", kind="barrier")


def _plain(tensor: Tensor) -> Tensor:
    """View a dtype that gloo does not know as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def _device(group: dist.ProcessGroup) -> torch.device:
    """Return the device of a group's tensors."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
