"""``add_residual`` in plain PyTorch."""

import torch
from torch import Tensor

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """See the contract."""
    wide = math_dtype(x.dtype)
    total = x.to(wide) + y.to(wide) + bias.to(wide).view(-1, 1, 1, 1)
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last_3d)
