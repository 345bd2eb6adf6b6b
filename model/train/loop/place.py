"""Where a training runs: on which device, and on how many ranks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator

from ..demo import CPU, training_dtype, training_ops
from .shards import make_mesh, share_out


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a training runs; by default on one rank, on the CPU. On a GPU it is untested.

    Attributes:
        device: This rank's.
        world: The ranks, for tensors on the device.
        control: The same ranks, for tensors on the CPU.
        mesh: The mesh over which a transformer's parameters are sharded (`make_mesh`); None:
            they are not.
        recompute: Blocks keep only their inputs, and run again in the backward pass.
    """

    device: torch.device = CPU
    world: Communicator = field(default_factory=LocalCommunicator)
    control: Communicator = field(default_factory=LocalCommunicator)
    mesh: DeviceMesh | None = None
    recompute: bool = False

    @classmethod
    def of_ranks(
        cls,
        device: torch.device,
        world: Communicator,
        control: Communicator,
        *,
        copies: int = 1,
        recompute: bool = False,
    ) -> "Place":
        """Place a training on ranks that share a transformer's parameters out, or on one.

        Args:
            device: This rank's.
            world: The ranks, for tensors on the device.
            control: The same ranks, for tensors on the CPU.
            copies: See `make_mesh`.
            recompute: See the class.

        Raises:
            UserError: The copies do not fit the ranks.
        """
        if world.size == 1 and copies != 1:
            raise UserError(f"--copies {copies}: is for several ranks; use --nproc")
        return cls(
            device=device,
            world=world,
            control=control,
            mesh=None if world.size == 1 else make_mesh(device, world.size, copies=copies),
            recompute=recompute,
        )

    @property
    def leads(self) -> bool:
        """Whether this rank writes the results."""
        return self.control.rank == 0

    @property
    def ops(self) -> Ops:
        """Ops with gradients on the device."""
        return training_ops(self.device)

    @property
    def products(self) -> torch.dtype:
        """What matrices are multiplied in: bf16 where the device does that, else float32."""
        return training_dtype(self.device)

    def share_out(
        self, network: nn.Module, blocks: Iterable[nn.Module], dtype: torch.dtype
    ) -> None:
        """Share a network out among the ranks, if there are several; see `share_out`."""
        if self.mesh is not None:
            share_out(network, blocks, self.mesh, dtype)

    def take(self, tensor: Tensor) -> Tensor:
        """Bring a tensor to the device."""
        return tensor.to(self.device)
