"""Messages between ranks that are in flight together: source, target and bytes.

The runtime's own code says what it sends, on the meta device: every rank is run by itself.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.comm import Communicator, LocalCommunicator, Messages, Pending
from ..runtime.solo import SoloCommunicator


class Message(NamedTuple):
    """A number of bytes from one rank to another."""

    source: int
    target: int
    bytes: int


class Exchange(NamedTuple):
    """Messages of one call, and their purpose, as in `Traffic`."""

    kind: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Messages that are in flight at the same time.

    Attributes:
        name: Display name, at most 31 characters.
        kind: Purpose, as in `Traffic`; ``broadcast`` is one collective, others are exchanges.
        messages: Of all ranks. Those between two ranks keep their order; none is empty.
    """

    name: str
    kind: str
    messages: tuple[Message, ...]

    @property
    def sent(self) -> Counter[int]:
        """Rank -> bytes sent."""
        return _sum((message.source, message.bytes) for message in self.messages)

    @property
    def received(self) -> Counter[int]:
        """Rank -> bytes received."""
        return _sum((message.target, message.bytes) for message in self.messages)

    @property
    def bytes(self) -> int:
        """Bytes per rank: what the busiest direction of the busiest rank must carry.

        Divided by the time, this is what NCCL's tests call the bus bandwidth. A broadcast crosses
        each link once, as ranks may forward it.
        """
        directions = [self.received] if self.kind == "broadcast" else [self.sent, self.received]
        return max(max(direction.values(), default=0) for direction in directions)

    @property
    def two_way(self) -> bool:
        """Whether a rank sends and receives at the same time."""
        return self.sent.keys() & self.received.keys() != set()


def link_patterns(world: int, sizes: Iterable[int]) -> list[Pattern]:
    """List large messages between pairs of neighbours, all pairs at once: one-way, then two-way."""
    pairs = [(rank, rank + 1) for rank in range(0, world - 1, 2)]
    back = [(target, source) for source, target in pairs]
    return [
        Pattern(
            name=f"link {name}, {size >> 20} MiB",
            kind="link",
            messages=tuple(Message(*pair, size) for pair in chosen),
        )
        for name, chosen in (("one way", pairs), ("both ways", pairs + back))
        for size in sizes
    ]


def exchanges(world: int, run: Callable[[Communicator], object]) -> list[Exchange]:
    """Record what ranks would send each other, one exchange after another.

    Args:
        world: Ranks.
        run: Called once per rank, with its communicator; all ranks must exchange equally often.
    """
    logs: list[list[Exchange]] = []
    for rank in range(world):
        logs.append([])
        with torch.no_grad():
            run(_NotingCommunicator(rank, range(world), logs[-1]))
    return [
        Exchange(parts[0].kind, tuple(message for part in parts for message in part.messages))
        for parts in zip(*logs, strict=True)
    ]


class _NotingCommunicator(SoloCommunicator):
    """Notes every exchange of a rank, those of the groups split off as well."""

    def __init__(self, rank: int, members: Sequence[int], log: list[Exchange]) -> None:
        """Be rank ``rank`` of the world, in a group of ``members``."""
        super().__init__(members.index(rank), len(members))
        self._members, self._log = members, log

    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """See `Communicator.exchange`."""
        send = list(send)
        self._note(kind, send)
        return super().exchange(send, receive, kind=kind)

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """See `Communicator.broadcast`."""
        peers = range(self.size) if source == self.rank else ()
        self._note(kind, [(peer, x) for peer in peers if peer != source])
        return x

    def split(self, groups: Sequence[Sequence[int]]) -> Communicator:
        """See `Communicator.split`."""
        (own,) = (ranks for ranks in groups if self.rank in ranks)
        if len(own) == 1:
            return LocalCommunicator()
        members = [self._members[place] for place in own]
        return _NotingCommunicator(self._members[self.rank], members, self._log)

    def _note(self, kind: str, sent: Messages) -> None:
        source = self._members[self.rank]
        messages = (
            Message(source, self._members[peer], tensor.nbytes)
            for peer, tensor in sent
            if tensor.numel()
        )
        self._log.append(Exchange(kind, tuple(messages)))


def _sum(parts: Iterable[tuple[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for rank, count in parts:
        total[rank] += count
    return total
