"""One stream on several ranks: who does what, and how rank 0 leads the others.

Rank 0 reads the sound, runs the audio encoder, holds the session and takes the frames. The others
follow: they receive each session and chunk, run the same `ChunkGenerator`, and hold no frames. The
transformer's tokens are distributed over all ranks (`SequenceParallel`), and so are the picture's
rows and columns (`HaloExchange`); latents are small and present on every rank.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_kernels.runtime.halo import WHOLE, HaloExchange, Whole
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel
from livetalk_kernels.runtime.timed_comm import TimedCommunicator
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_kernels.runtime.xfuser_attention import XFuserAttention, reason

from ..config import DiTConfig
from ..vae import SPATIAL
from .stats import Phase, no_phase


@dataclass(frozen=True, kw_only=True)
class Split:
    """How to distribute a stream; None for the best.

    Attributes:
        ulysses: Ranks that share the heads of a block of tokens.
        ring: Number of token blocks, whose keys and values rotate.
        vae_grid: Rows and columns of slices of the picture.
        fp8_exchange: Send queries, keys and values in FP8: an approximation.
        halo_overlap: Convolve slices while their halos are in flight.
        xfuser: Use xfuser's self-attention instead of ours.
    """

    ulysses: int | None = None
    ring: int | None = None
    vae_grid: Grid | None = None
    fp8_exchange: bool = False
    halo_overlap: bool = False
    xfuser: bool = False


class Team:
    """The ranks that make one stream together; by default a single rank.

    Attributes:
        world: All ranks, for tensors on the device.
        split: How to distribute the work.
        phase: Marks what this rank is doing.
    """

    def __init__(
        self,
        world: Communicator | None = None,
        control: Communicator | None = None,
        *,
        split: Split | None = None,
        ranks_per_node: int | None = None,
        phase: Phase = no_phase,
    ) -> None:
        """Assemble the ranks.

        Args:
            world: All ranks, for tensors on the device.
            control: All ranks, for tensors on the CPU; by default ``world``.
            split: How to distribute the work.
            ranks_per_node: Ranks on a node; by default all are on one.
            phase: Called with the name of each stage.
        """
        self.world = LocalCommunicator() if world is None else world
        self.split, self.phase = split or Split(), phase
        self._control = self.world if control is None else control
        self._ranks_per_node = ranks_per_node

    def timed(self, timeline: Timeline) -> "Team":
        """Return the same ranks with recorded exchanges; call it before a model is loaded.

        What rank 0 sends the others is not recorded.
        """
        if self.size == 1:
            return self
        return Team(
            TimedCommunicator(self.world, timeline),
            self._control,
            split=self.split,
            ranks_per_node=self._ranks_per_node,
            phase=self.phase,
        )

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.world.size

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.world.rank == 0

    def mesh(self, config: DiTConfig) -> Mesh:
        """Choose how the transformer's tokens and heads are distributed.

        Raises:
            UserError: The split does not fit the ranks or the model.
        """
        return Mesh.choose(
            self.size,
            config.num_heads,
            ulysses=self.split.ulysses,
            ring=self.split.ring,
            ranks_per_node=self._ranks_per_node,
        )

    def sequence(
        self, config: DiTConfig, ops: Ops, device: torch.device, dtype: torch.dtype
    ) -> SequenceParallel:
        """Build what the transformer asks about this rank's tokens; all ranks call it together.

        Raises:
            UserError: As `mesh`; or what was requested has no effect with it, or cannot run.
        """
        mesh, split = self.mesh(config), self.split
        if split.fp8_exchange and mesh.ulysses == 1:
            raise UserError("--fp8-exchange: needs --ulysses 2 or more, whose exchange it is")
        if not split.xfuser:
            return SequenceParallel(mesh, self.world, ops, fp8=split.fp8_exchange)
        if split.fp8_exchange:
            raise UserError("--xfuser: has an exchange of its own; leave out --fp8-exchange")
        why = reason(mesh, device, dtype, heads=config.num_heads)
        if why is not None:
            raise UserError(f"--xfuser: {why}")
        return SequenceParallel(mesh, self.world, ops, foreign=XFuserAttention(mesh))

    def grid(self, size: tuple[int, int]) -> Grid:
        """Choose how a picture of ``size`` pixels is distributed.

        Raises:
            UserError: The split does not fit the ranks or the picture.
        """
        height, width = (side // SPATIAL for side in size)
        return Grid.choose(self.size, (height, width), self.split.vae_grid)

    def halo(self, size: tuple[int, int]) -> Whole:
        """Build what the VAE asks about this rank's slice, for a picture of ``size`` pixels.

        Raises:
            UserError: As `grid`.
        """
        if self.size == 1:
            return WHOLE
        height, width = (side // SPATIAL for side in size)
        grid, overlap = self.grid(size), self.split.halo_overlap
        return HaloExchange(self.world, grid, (height, width), overlap=overlap)

    def send(self, message: Mapping[str, Any], data: Callable[[], bytes] = bytes) -> None:
        """Send the others a message, which each gets from `receive`; for rank 0. A no-op alone."""
        if self.size > 1:
            self._send(json.dumps(message).encode(), data())

    def _send(self, text: bytes, data: bytes) -> None:
        self._control.broadcast(torch.tensor([len(text), len(data)]), 0, kind="control")
        self._control.broadcast(_bytes(text + data), 0, kind="control")

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Receive what rank 0 sends; for the other ranks."""
        lengths = torch.empty(2, dtype=torch.int64)
        text, data = self._control.broadcast(lengths, 0).tolist()
        received = torch.empty(text + data, dtype=torch.uint8)
        both = self._control.broadcast(received, 0).numpy().tobytes()
        return json.loads(both[:text]), both[text:]

    def agree(self, numbers: Sequence[int]) -> list[int]:
        """Distribute rank 0's whole numbers to all ranks; the others pass as many of any value."""
        return self._control.broadcast(torch.tensor(numbers), 0, kind="control").tolist()

    def gather(self, data: bytes) -> list[bytes]:
        """Collect what every rank passes, in rank order, on all ranks, which call it together."""
        if self.size == 1:
            return [data]
        own = torch.tensor([len(data)])
        sizes = self._control.all_gather(own, [1] * self.size, kind="control").tolist()
        joined = self._control.all_gather(_bytes(data), sizes, kind="control").numpy().tobytes()
        ends = list(itertools.accumulate(sizes))
        return [joined[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def share(self, x: Tensor) -> Tensor:
        """Distribute a float32 tensor of rank 0 to all ranks; the others pass one of its shape."""
        return self.world.broadcast(x.contiguous(), 0, kind="windows")


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
