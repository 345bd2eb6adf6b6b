"""A single process, or many that shard parameters, gradients and optimiser states: FSDP2.

Each transformer block is gathered when it runs and then freed, the rest as a whole. Parameters stay
in float32; products run in bf16 on a GPU, and gradients are summed in float32.

Source: PyTorch FSDP (arXiv 2304.11277); untested on a GPU.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.comm import Communicator


def make_mesh(device: torch.device, world: int, *, copies: int = 1) -> DeviceMesh:
    """Arrange ranks as (copies, shards): parameters are sharded within a row, and each row has all.

    Args:
        device: Device of the ranks' tensors.
        world: Number of ranks.
        copies: Number of full copies of the parameters; more than one (HSDP) keeps gathering
            within nodes.

    Raises:
        UserError: The copies do not divide the ranks.
    """
    if copies < 1 or world % copies:
        raise UserError(f"--copies {copies}: does not divide {world} ranks; use a divisor")
    if copies == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    shape = copies, world // copies
    return init_device_mesh(device.type, shape, mesh_dim_names=("copy", "shard"))


def share_out(
    network: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype
) -> None:
    """Shard a network's parameters over a mesh, in place; create optimisers afterwards.

    Args:
        network: Network, equal on all ranks. On the meta device: `local_rows` says which rows of
            its parameters to load.
        blocks: Its parts that are gathered one at a time.
        mesh: From `make_mesh`.
        dtype: Dtype of products and activations.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the network casts by itself, except its modulation
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # The rest too: otherwise runs without gradients would leave it gathered, and stale.
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def local_rows(value: Tensor) -> tuple[Tensor, range]:
    """Return what this rank has of a tensor, detached, and which rows these are."""
    if not isinstance(value, DTensor):
        return value.detach(), range(value.shape[0] if value.ndim else 1)
    axis, count, local = shard_axis(value), value.shape[0], value.to_local().detach()
    most = -(-count // value.device_mesh.size(axis))
    start = min(most * value.device_mesh.get_local_rank(axis), count)
    rows = range(start, min(start + most, count))
    assert len(rows) == len(local)
    return local, rows


def shard_axis(value: DTensor) -> int:
    """Return the mesh axis over which rows are sharded; the other axes hold copies."""
    (axis,) = [i for i, p in enumerate(value.placements) if isinstance(p, Shard)]
    assert value.placements[axis] == Shard(0)
    return axis


def reduce_gradients(network: nn.Module, wanted: bool) -> None:
    """Average gradients over the ranks in the next backward pass, or defer it."""
    if isinstance(network, FSDPModule):
        cast(FSDPModule, network).set_requires_gradient_sync(wanted)


def average_gradients(network: nn.Module, world: Communicator) -> None:
    """Average the gradients of a network that every rank has whole, after all backward passes.

    One that is shared out has done so by itself.

    Args:
        network: The same on all ranks, and so is which parameters have gradients.
        world: The ranks, for tensors on its device.

    Raises:
        CommError: A rank is lost.
    """
    if world.size == 1 or isinstance(network, FSDPModule):
        return
    for parameter in network.parameters():
        if parameter.grad is not None:
            world.all_reduce(parameter.grad, "sum", kind="gradients").div_(world.size)
