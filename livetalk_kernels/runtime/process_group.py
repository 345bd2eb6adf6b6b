"""Join and leave the world that torchrun has started.

NCCL on GPUs, gloo on CPUs. Beside the world there is a *control* group, always gloo: what rank 0
tells the others passes between hosts without waiting for a GPU. Untested on a GPU.
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
    """Be one of torchrun's ranks for a while.

    Args:
        device: Where this rank's tensors lie; a GPU of its own, or the CPU.

    Yields:
        The world's communicator, for tensors on the device, and the control group's, for tensors
        on the CPU. No CUDA graph with their calls may be kept beyond the block.

    Raises:
        CommError: The other ranks did not come.
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
        control.barrier()  # on the host, which NCCL's is not: who leaves takes connections along
    # NCCL waits for ever for CUDA graphs that hold its calls, and ours lie in reference cycles.
    gc.collect()
    # Not after an error: with a lost peer it could wait forever, and the process is about to end.
    dist.destroy_process_group()
