"""Who sends what over which link, and how much of it computation hides."""

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
        mesh: Mesh of the transformer.
        grid: Grid of the VAE.
        nodes: Number of nodes, with equally many ranks.

    Raises:
        UserError: The nodes do not divide the ranks.
    """

    mesh: Mesh
    grid: Grid
    nodes: int = 1

    def __post_init__(self) -> None:
        """Reject uneven nodes."""
        assert self.mesh.world == self.grid.world
        if self.nodes < 1 or self.mesh.world % self.nodes:
            raise UserError(
                f"--nodes {self.nodes}: {self.mesh.world} GPUs do not divide evenly among them"
            )

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.mesh.world

    def node(self, rank: int) -> int:
        """Return the node of a rank."""
        return rank * self.nodes // self.world

    @property
    def far_heads(self) -> float:
        """Fraction of a rank's head-exchange peers that are on other nodes."""
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
        """1 if keys and values cross nodes, since a ring's slowest link sets its pace; else 0."""
        pairs = (
            (group[i], group[(i + 1) % len(group)])
            for group in self.mesh.ring_groups()
            for i in range(len(group))
        )
        return float(any(self.node(a) != self.node(b) for a, b in pairs))

    @property
    def far_all(self) -> float:
        """Fraction of all other ranks that are on other nodes."""
        return (self.world - self.world // self.nodes) / max(1, self.world - 1)

    def far_halo(self, slices: Slices) -> float:
        """Compute the fraction of a slice's neighbours that are on other nodes."""
        return max(
            _far([self.node(other) for _, other in slices.neighbours(rank)], self.node(rank))
            for rank in range(self.world)
        )


def _far(others: Sequence[int], own: int) -> float:
    return sum(node != own for node in others) / len(others) if others else 0.0


def head_groups(mesh: Mesh, heads: int, own: int) -> list[int]:
    """Split a rank's heads into the groups in which a GPU exchanges them (`SequenceParallel`)."""
    if mesh.ring == 1 and mesh.ulysses > 1 and heads >= OVERLAP_HEADS * mesh.ulysses:
        return [own - own // 2, own // 2]
    return [own]


def exchanged(send: Sequence[float], attend: Sequence[float], back: Sequence[float]) -> float:
    """Compute the seconds of attention with exchanges of head groups, in the order of `Ulysses`.

    While one group is attended to, the next arrives and the previous one returns; a link sends one
    thing at a time.

    Args:
        send: Seconds that each group takes to the ranks that attend.
        attend: Seconds of its attention.
        back: Seconds of its way back.
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
    """Compute the seconds of attention to all blocks, each received during the previous one.

    Args:
        attend: Seconds for one block.
        pass_on: Seconds to send a block's keys and values.
        blocks: Number of blocks.
    """
    return attend + (blocks - 1) * max(attend, pass_on)
