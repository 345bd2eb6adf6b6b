"""Sequence parallelism: every rank computes its own token rows; attention sees all.

A model asks `SequenceParallel.sequence` for its share of a number of tokens, and that object for
everything that involves other ranks' rows. On one rank it is trivial, and nothing is copied.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..ops import Ops
from ..ops.quantize import dequantize
from .comm import Communicator, LocalCommunicator
from .mesh import Mesh, shares, starts
from .ring import ring_attention
from .ulysses import Ulysses

GATHER, FIRST_ROWS, EXTREMES = "gather", "first_rows", "extremes"
OVERLAP_HEADS = 4  # from this many heads per rank, half of them keep a GPU busy

Layout = Literal["token", "head"]  # of q and k, as returned by `rms_norm_rope`
# q, k, v of this rank's rows, [1, L, H, d] each -> attention to all ranks' rows, the same shape.
MeshAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


class LocalSequence:
    """All tokens on one rank: nothing is partitioned, nothing is sent.

    Attributes:
        rows: This rank's rows of all tokens.
        layout: Layout in which `attention` takes q and k (`rms_norm_rope`): ``token``: [1, L, H,
            d]; ``head``: [H, 1, L, d].
    """

    layout: Layout = "token"

    def __init__(self, tokens: int, ops: Ops) -> None:
        """Create a sequence of ``tokens`` tokens."""
        self.rows = slice(0, tokens)
        self.ops = ops

    def attention(self, q: Tensor, k: Tensor, v_BLHd: Tensor) -> Tensor:
        """Compute attention of this rank's rows to those of all ranks.

        Args:
            q: Queries of this rank's rows, contiguous, in ``self.layout``.
            k: Keys, in the same layout.
            v_BLHd: Values [1, L, H, d], a view or not.

        Returns:
            [1, L, H, d], contiguous, fresh.
        """
        out_BLHd: Tensor = self.ops.chunk_attention(q, k, v_BLHd)[0]
        return out_BLHd

    def by_token(self, x: Tensor) -> Tensor:
        """View q or k of this rank's rows as [L, H, d]."""
        return x[0] if self.layout == "token" else x[:, 0].transpose(0, 1)

    def first_rows(self, k: Tensor, count: int) -> Tensor:
        """Return the keys of the first tokens overall, [count, H, d], from the ranks with them."""
        return self.by_token(k)[:count]

    def extremes(self, x_RL: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the minimum and maximum of each line over all ranks' rows, [R] each."""
        return x_RL.amin(dim=1), x_RL.amax(dim=1)

    def gather(self, x_BLC: Tensor) -> Tensor:
        """Return all ranks' rows, [1, tokens, C]."""
        return x_BLC


class ShardedSequence(LocalSequence):
    """One rank's rows of a sequence that a mesh of ranks shares."""

    layout: Layout = "head"

    def __init__(self, tokens: int, parallel: "SequenceParallel") -> None:
        """Partition ``tokens`` tokens."""
        super().__init__(tokens, parallel.ops)
        self._parallel, rank = parallel, parallel.communicator.rank
        mesh = parallel.mesh
        self._sizes = shares(tokens, mesh.world)
        self._starts = starts(self._sizes)
        self.rows = slice(self._starts[rank], self._starts[rank + 1])
        blocks = [self._sizes[first : first + mesh.ulysses] for first in _block_starts(mesh)]
        self._block = blocks[rank // mesh.ulysses]
        self._lengths = [sum(block) for block in blocks]

    def attention(self, q: Tensor, k: Tensor, v_BLHd: Tensor) -> Tensor:
        """See `LocalSequence.attention`."""
        q_HLd, k_HLd, v_HLd = q[:, 0], k[:, 0], v_BLHd[0].transpose(0, 1).contiguous()
        parallel = self._parallel
        if parallel.ulysses.size == 1:
            return self._ring(q_HLd, k_HLd, v_HLd)
        ulysses = Ulysses(
            parallel.ulysses, self._block, len(q_HLd), groups=parallel.head_groups(q_HLd)
        )
        if not parallel.fp8:
            return ulysses.attention((q_HLd, k_HLd, v_HLd), self._ring)

        def attend(*parts: Tensor) -> Tensor:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return self._ring(*(dequantize(values, scale, q.dtype) for values, scale in pairs))

        quantized = (self.ops.quantize(x_HLd) for x_HLd in (q_HLd, k_HLd, v_HLd))
        return ulysses.attention([part for pair in quantized for part in pair], attend)

    def _ring(self, q_HLd: Tensor, k_HLd: Tensor, v_HLd: Tensor) -> Tensor:
        return ring_attention(self._parallel.ring, self.ops, q_HLd, k_HLd, v_HLd, self._lengths)

    def first_rows(self, k: Tensor, count: int) -> Tensor:
        """See `LocalSequence.first_rows`."""
        communicator, k_LHd = self._parallel.communicator, self.by_token(k)
        out_SHd = k.new_empty(count, *k_LHd.shape[1:])
        parts = out_SHd.split(_first_sizes(self._starts, count))
        for source, part in enumerate(parts):
            if source == communicator.rank:
                part.copy_(k_LHd[: len(part)])
            if len(part):
                communicator.broadcast(part, source, kind=FIRST_ROWS)
        return out_SHd

    def extremes(self, x_RL: Tensor) -> tuple[Tensor, Tensor]:
        """Reduce both at once, as the minimum of (minimum, -maximum)."""
        if x_RL.shape[1] == 0:
            both = x_RL.new_full((2, x_RL.shape[0]), torch.inf)
        else:
            both = torch.stack((x_RL.amin(dim=1), -x_RL.amax(dim=1)))
        low, high = self._parallel.communicator.all_reduce(both, "min", kind=EXTREMES)
        return low, -high

    def gather(self, x_BLC: Tensor) -> Tensor:
        """See `LocalSequence.gather`."""
        communicator = self._parallel.communicator
        return communicator.all_gather(x_BLC[0].contiguous(), self._sizes, kind=GATHER)[None]


class ForeignSequence(ShardedSequence):
    """Like `ShardedSequence`, with another library's attention."""

    layout: Layout = "token"

    def attention(self, q: Tensor, k: Tensor, v_BLHd: Tensor) -> Tensor:
        """See `LocalSequence.attention`."""
        assert self._parallel.foreign is not None
        return self._parallel.foreign(q, k, v_BLHd)


class SequenceParallel:
    """How a mesh's ranks share a model's tokens; passed to the model on every rank.

    Attributes:
        mesh: Assignment of head exchanges and ring passes to ranks.
        communicator: All ranks of the mesh.
        ops: The bound ops.
        ulysses: The ranks that share heads with this one.
        ring: The ranks that hold the same heads of other blocks.
        fp8: Whether q, k and v are sent in FP8.
        foreign: Another library's attention over the mesh; None for ours.
    """

    def __init__(
        self,
        mesh: Mesh,
        communicator: Communicator,
        ops: Ops,
        *,
        groups: int | None = None,
        fp8: bool = False,
        foreign: MeshAttention | None = None,
    ) -> None:
        """Create the groups of ranks; every rank of the communicator must do so.

        Args:
            mesh: Mesh with as many ranks as the communicator.
            communicator: All ranks, in mesh order.
            ops: The bound ops.
            groups: Number of groups in which a rank's heads are exchanged, so that one is attended
                to while the next is in flight. By default 2 on a GPU with at least 4 heads per
                rank, else 1.
            fp8: Quantise q, k and v per token and head for the all-to-all: half the bytes of 16
                bits, a quarter of 32, but no longer exact.
            foreign: Another attention over the same mesh (`xfuser_attention`).
        """
        assert communicator.size == mesh.world and not (fp8 and foreign)
        self.mesh, self.communicator, self.ops = mesh, communicator, ops
        self.fp8, self.foreign, self._groups = fp8, foreign, groups
        self.ulysses = communicator.split(mesh.ulysses_groups())
        self.ring = communicator.split(mesh.ring_groups())

    @classmethod
    def alone(cls, ops: Ops) -> "SequenceParallel":
        """Create the trivial instance for one rank."""
        return cls(Mesh(ulysses=1, ring=1), LocalCommunicator(), ops)

    @property
    def approximate(self) -> bool:
        """Whether the result differs from that of one rank by more than rounding."""
        return self.fp8 and self.mesh.ulysses > 1

    def sequence(self, tokens: int) -> LocalSequence:
        """Return this rank's share of ``tokens`` tokens.

        Raises:
            UserError: Another library's attention needs a token count divisible by the ranks.
        """
        if self.foreign is not None and tokens % self.mesh.world:
            raise UserError(
                f"--xfuser: {tokens} tokens do not divide by {self.mesh.world} ranks; choose "
                "another --size or leave it out"
            )
        if self.mesh.world == 1:
            return LocalSequence(tokens, self.ops)
        kind = ShardedSequence if self.foreign is None else ForeignSequence
        return kind(tokens, self)

    def head_groups(self, q_HLd: Tensor) -> int:
        """Return the number of groups in which a rank's heads are exchanged."""
        if self._groups is not None:
            return self._groups
        many = len(q_HLd) >= OVERLAP_HEADS * self.mesh.ulysses
        # NCCL requires one communicator at a time, and the ring has another than Ulysses.
        return 2 if q_HLd.is_cuda and many and self.mesh.ring == 1 else 1


def _block_starts(mesh: Mesh) -> range:
    """List the first rank of every token block."""
    return range(0, mesh.world, mesh.ulysses)


def _first_sizes(first: Sequence[int], count: int) -> list[int]:
    """Count how many of the first ``count`` rows are in each part; ``first``: the parts' starts."""
    return [min(max(count - a, 0), b - a) for a, b in pairwise(first)]
