"""Ulysses: ranks that share a block of tokens exchange tokens for heads around attention.

Outside attention a rank holds all heads of its own rows; for attention it needs all rows of its own
heads. Both directions are an all-to-all. A rank's heads may be split into *groups*: while one group
is attended to, the next is in flight, and the previous one's results return.

Nothing is padded: rows and heads may be uneven. q, k and v are head-major, so that each rank's
piece is contiguous; a group of one head is also received in place.

Source: DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .comm import Communicator, Pending
from .mesh import shares, starts

KIND = "all_to_all"
# A group's own heads over the block's rows, [n, T, ...] each -> their attention [1, T, n, d],
# contiguous.
Attend = Callable[..., Tensor]


class Ulysses:
    """The exchanges of one rank, for a number of heads and the rows of all ranks in its group.

    Attributes:
        rows: Rows of every rank, as slices of the block.
        groups: For every group, each rank's heads, as slices of all heads.
    """

    def __init__(
        self, communicator: Communicator, rows: Sequence[int], heads: int, *, groups: int = 1
    ) -> None:
        """Partition the heads.

        Args:
            communicator: The ranks that share heads.
            rows: Number of tokens of every rank.
            heads: Number of attention heads, at least one per rank.
            groups: Number of groups of a rank's heads, at most the number of its heads.
        """
        assert len(rows) == communicator.size <= heads
        self._comm = communicator
        self.rows = [slice(*ends) for ends in pairwise(starts(rows))]
        self._block = sum(rows)
        share = shares(heads, communicator.size)
        count = max(1, min(groups, share[-1]))
        divided = [
            [slice(first + a, first + b) for a, b in pairwise(starts(shares(own, count)))]
            for first, own in zip(starts(share), share, strict=False)
        ]
        self.groups = list(zip(*divided, strict=True))

    def attention(self, tensors: Sequence[Tensor], attend: Attend) -> Tensor:
        """Compute attention of this rank's rows; ``attend`` computes that of all rows of few heads.

        Args:
            tensors: Queries, keys, values, or their encoding, of this rank's rows: [H, L, ...]
                each, contiguous.
            attend: Computes attention of a group.

        Returns:
            [1, L, H, d], contiguous, fresh.
        """
        pieces: list[tuple[slice, Tensor]] = []
        returning: list[Pending] = []
        arrival = self._scatter(tensors, 0)
        for group in range(len(self.groups)):
            arrived = arrival
            if group + 1 < len(self.groups):
                arrival = self._scatter(tensors, group + 1)
            out_TnD = attend(*arrived())[0]
            returning.append(self._give_back(out_TnD, group, pieces))
        for pending in returning:
            pending.wait()
        pieces.sort(key=lambda piece: piece[0].start)
        return torch.cat([piece for _, piece in pieces], dim=1)[None]

    def _scatter(self, tensors: Sequence[Tensor], group: int) -> Callable[[], list[Tensor]]:
        """Send other ranks' heads of a group; the result waits for this rank's, [n, T, ...]."""
        heads, own = self.groups[group], self._comm.rank
        blocks = [
            x.new_empty(heads[own].stop - heads[own].start, self._block, *x.shape[2:])
            for x in tensors
        ]
        send, receive, landed = [], [], []
        for peer, rows in enumerate(self.rows):
            for x, block in zip(tensors, blocks, strict=True):
                place = block[:, rows]
                if peer == own:
                    place.copy_(x[heads[own]])
                    continue
                landing = place
                if not place.is_contiguous():  # several heads: their rows are apart in the block
                    landing = torch.empty_like(place, memory_format=torch.contiguous_format)
                    landed.append((place, landing))
                send.append((peer, x[heads[peer]]))
                receive.append((peer, landing))
        pending = self._comm.exchange(send, receive, kind=KIND)

        def wait() -> list[Tensor]:
            pending.wait()
            for place, landing in landed:
                place.copy_(landing)
            return blocks

        return wait

    def _give_back(
        self, out_TnD: Tensor, group: int, pieces: list[tuple[slice, Tensor]]
    ) -> Pending:
        """Send other ranks' rows of a group's attention, and note where this rank's will be."""
        heads, own = self.groups[group], self._comm.rank
        length = self.rows[own].stop - self.rows[own].start
        send, receive = [], []
        for peer, rows in enumerate(self.rows):
            if peer == own:
                pieces.append((heads[own], out_TnD[rows]))
                continue
            count = heads[peer].stop - heads[peer].start
            piece = out_TnD.new_empty(length, count, *out_TnD.shape[2:])
            pieces.append((heads[peer], piece))
            send.append((peer, out_TnD[rows]))
            receive.append((peer, piece))
        return self._comm.exchange(send, receive, kind=KIND)
