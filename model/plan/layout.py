"""Who sends what over which link, and what of it is hidden behind computing."""

from collections.abc import Sequence
from dataclasses import dataclass

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.sequence_parallel import OVERLAP_HEADS
from livetalk_kernels.runtime.slices import Slices


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How ranks share a stream.

    Attributes:
        mesh: Of the transformer.
        grid: Of the VAE.
        nodes: Nodes, with as many ranks each.

    Raises:
        UserError: Nodes do not divide the ranks.
    """

    mesh: Mesh
    grid: Grid
    nodes: int = 1

    def __post_init__(self) -> None:
        """Refuse uneven nodes."""
        assert self.mesh.world == self.grid.world
        if self.nodes < 1 or self.mesh.world % self.nodes:
            raise UserError(
                f"--nodes {self.nodes}: {self.mesh.world} GPUs do not divide evenly among them"
            )

    @property
    def world(self) -> int:
        """Ranks."""
        return self.mesh.world

    def node(self, rank: int) -> int:
        """Where a rank is."""
        return rank * self.nodes // self.world

    @property
    def far_heads(self) -> float:
        """Share of the ranks that a rank exchanges heads with which are on other nodes."""
        return max(
            (
                _far([self.node(rank) for rank in group if rank != own], self.node(own))
                for group in self.mesh.ulysses_groups()
                for own in group
            ),
            default=0.0,
        )

    @property
    def far_ring(self) -> float:
        """1 if keys and values cross nodes: the slowest link of a ring sets its pace."""
        pairs = (
            (group[i], group[(i + 1) % len(group)])
            for group in self.mesh.ring_groups()
            for i in range(len(group))
        )
        return float(any(self.node(a) != self.node(b) for a, b in pairs))

    @property
    def far_all(self) -> float:
        """Share of all others that are on other nodes."""
        return (self.world - self.world // self.nodes) / max(1, self.world - 1)

    def far_halo(self, slices: Slices) -> float:
        """Share of a slice's neighbours that are on other nodes."""
        return max(
            _far([self.node(other) for _, other in slices.neighbours(rank)], self.node(rank))
            for rank in range(self.world)
        )


def _far(others: Sequence[int], own: int) -> float:
    return sum(node != own for node in others) / len(others) if others else 0.0


def head_groups(mesh: Mesh, heads: int, own: int) -> list[int]:
    """Heads of each group in which a GPU's rank exchanges its own (`SequenceParallel`)."""
    if mesh.ring == 1 and mesh.ulysses > 1 and heads >= OVERLAP_HEADS * mesh.ulysses:
        return [own - own // 2, own // 2]
    return [own]


def exchanged(send: Sequence[float], attend: Sequence[float], back: Sequence[float]) -> float:
    """Seconds of attention with its exchanges, of groups of heads, in the order of `Ulysses`.

    While one group is attended to, the next arrives and the one before returns; one link sends one
    thing at a time.

    Args:
        send: Of each group, its way to the ranks that attend.
        attend: Its attention.
        back: Its way back.
    """
    link = computing = 0.0
    arrived: list[float] = []
    for group in range(len(attend)):
        while len(arrived) < min(group + 2, len(send)):
            link += send[len(arrived)]
            arrived.append(link)
        computing = max(computing, arrived[group]) + attend[group]
        link = max(link, computing) + back[group]
    return max(link, computing)


def ring_seconds(attend: float, pass_on: float, blocks: int) -> float:
    """Seconds of attention to all blocks, while each next one arrives in a second buffer.

    Args:
        attend: To one block.
        pass_on: A block's keys and values.
        blocks: Blocks.
    """
    return attend + (blocks - 1) * max(attend, pass_on)
