"""Join and leave the world that torchrun has started.

NCCL on GPUs, gloo on CPUs. Beside the world there is a *control* group, always gloo: what rank 0
tells the others passes between hosts without waiting for a GPU. Untested on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .comm import Communicator, GroupCommunicator, LocalCommunicator

# A live stream may wait for speech for hours; who hangs is found by the watchdog, not by this.
_FOREVER = timedelta(days=365)


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Communicator, Communicator]]:
    """Be one of torchrun's ranks for a while.

    Args:
        device: Where this rank's tensors lie; a GPU of its own, or the CPU.

    Yields:
        The world's communicator, for tensors on the device, and the control group's, for tensors
        on the CPU.

    Raises:
        CommError: The other ranks did not come.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method="env://",
        timeout=_FOREVER,
        device_id=device if cuda else None,
    )
    assert dist.group.WORLD is not None
    if dist.get_world_size() == 1:
        yield LocalCommunicator(), LocalCommunicator()
    else:
        world = GroupCommunicator(dist.group.WORLD)
        control = world
        if cuda:
            control = GroupCommunicator(dist.new_group(backend="gloo", timeout=_FOREVER))
        yield world, control
        world.barrier()  # a rank that leaves takes its connections with it
    # Not after an error: with a lost peer it could wait forever, and the process is about to end.
    dist.destroy_process_group()
