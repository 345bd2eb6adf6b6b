"""Picks the timer of a device."""

import torch

from ..spec import Arguments
from .cuda_timer import CudaTimer
from .timer import CpuTimer, Timer


def make_timer(device: torch.device, arguments: Arguments, *, hot: bool) -> Timer:
    """The timer of a device, for calls with these arguments.

    Args:
        device: Where they lie.
        arguments: Of one call.
        hot: Leave the inputs in the cache from call to call.
    """
    if device.type == "cuda":
        return CudaTimer(device, arguments, hot=hot)
    return CpuTimer(arguments, hot=hot)
