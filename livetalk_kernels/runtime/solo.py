"""One rank of several without the others, to count what it would send."""

from collections.abc import Sequence

from torch import Tensor

from .comm import Communicator, LocalCommunicator, Messages, Pending, Reduction, Traffic


class SoloCommunicator(Communicator):
    """Counts what a rank sends, as `GroupCommunicator` does, and sends nothing.

    Received tensors are left unchanged, so results are meaningless; tensors may be on the meta
    device.
    """

    def __init__(self, rank: int, size: int, traffic: Traffic | None = None) -> None:
        """Be rank ``rank`` of ``size``."""
        super().__init__(rank, size, traffic)

    def exchange(self, send: Messages, receive: Messages, *, kind: str) -> Pending:
        """Count the messages that are not empty; see `Communicator.exchange`."""
        for peer, tensor in send:
            assert peer != self.rank and tensor.is_contiguous()
            if tensor.numel():
                self.traffic.add(kind, tensor)
        assert all(peer != self.rank and tensor.is_contiguous() for peer, tensor in receive)
        return Pending()

    def all_reduce(self, x: Tensor, reduction: Reduction, *, kind: str = "reduce") -> Tensor:
        """Count x once for every other rank, and return it unchanged."""
        self.traffic.add(kind, x, self.size - 1)
        return x

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        """Count x once for every other rank if this is its source, and return it unchanged."""
        if source == self.rank:
            self.traffic.add(kind, x, self.size - 1)
        return x

    def split(self, groups: Sequence[Sequence[int]]) -> Communicator:
        """See `Communicator.split`."""
        (own,) = (ranks for ranks in groups if self.rank in ranks)
        if len(own) == 1:
            return LocalCommunicator()
        return SoloCommunicator(list(own).index(self.rank), len(own), self.traffic)

    def barrier(self) -> None:
        """Return at once."""
