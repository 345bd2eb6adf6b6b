"""Joins and leaves the world that torchrun has started.

NCCL on GPUs, gloo on CPUs. In addition to the world there is a *control* group, always gloo: what
rank 0 sends the others passes between hosts without waiting for a GPU.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..environment import leave_nccl_errors_to_us
from .comm import (
    FOREVER,
    Communicator,
    GroupCommunicator,
    LocalCommunicator,
    comm_errors,
)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Communicator, Communicator]]:
    """Be one of torchrun's ranks within the block.

    Args:
        device: Device of this rank's tensors; its own GPU, or the CPU.

    Yields:
        The communicators of the world, for tensors on the device, and of the control group, for
        tensors on the CPU. CUDA graphs with their calls must not outlive the block.

    Raises:
        CommError: The other ranks did not join.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
        leave_nccl_errors_to_us()
    with comm_errors():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method="env://",
            timeout=FOREVER,
            device_id=device if cuda else None,
        )
    assert dist.group.WORLD is not None
    if dist.get_world_size() == 1:
        yield LocalCommunicator(), LocalCommunicator()
    else:
        world = GroupCommunicator(dist.group.WORLD)
        control = world
        if cuda:
            control = GroupCommunicator(dist.new_group(backend="gloo", timeout=FOREVER))
        yield world, control
        control.barrier()  # on the host, unlike NCCL's: exiting ranks close their connections
    # NCCL waits forever for CUDA graphs that contain its calls, and ours are in reference cycles.
    gc.collect()
    # Not after an error: with a lost peer it could block forever, and the process is about to end.
    dist.destroy_process_group()
