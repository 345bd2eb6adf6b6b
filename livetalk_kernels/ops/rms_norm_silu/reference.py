"""``rms_norm_silu`` in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True
LEAST = 1e-12  # lower bound of a pixel's norm, as a divisor


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the contract."""
    wide = math_dtype(x.dtype)
    value = x.to(wide) if bias is None else x.to(wide) + bias.to(wide).view(-1, 1, 1, 1)
    if value.requires_grad:
        # If all channels are zero the derivative is 1 / LEAST, which would swamp all others.
        norm = value.detach().norm(dim=1, keepdim=True)
        value = torch.where(norm > LEAST, value, value.detach())
    unit = functional.normalize(value, dim=1, eps=LEAST)
    scaled = unit * x.shape[1] ** 0.5 * gamma.to(wide).view(-1, 1, 1, 1)
    return functional.silu(scaled).to(x.dtype)
