"""Selects the timer for a device."""

import torch

from ..spec import Arguments
from .cuda_timer import CudaTimer
from .timer import CpuTimer, Timer


def make_timer(device: torch.device, arguments: Arguments, *, hot: bool) -> Timer:
    """Create the timer of a device, for calls with these arguments.

    Args:
        device: Device of the arguments.
        arguments: Arguments of one call.
        hot: Leave the inputs in the cache between calls.
    """
    if device.type == "cuda":
        return CudaTimer(device, arguments, hot=hot)
    return CpuTimer(arguments, hot=hot)
