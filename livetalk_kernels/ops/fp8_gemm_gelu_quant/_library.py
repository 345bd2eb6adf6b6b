"""What the compositions with other people's kernels share."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...dispatch import pick
from ...spec import Case


@functools.cache
def quantizer(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """The best ``quantize`` for fp32 on a device."""
    case = Case(op="quantize", device=device, dtype=torch.float32)
    return pick(case, "auto", named=False).run
