"""``add_norm`` in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    wide = math_dtype(x.dtype)
    x_new = add(x, y, gate)
    # On a CPU layer_norm accepts bf16 with fp32 weights and itself computes in fp32.
    source = x_new if x_new.is_cpu else x_new.to(wide)
    h = functional.layer_norm(source, x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    return x_new, h.to(x.dtype)


def add(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """Compute x + gate * y, rounded once to x's dtype."""
    wide = math_dtype(x.dtype)
    if gate is None:
        return x + y  # torch adds two bf16 numbers in fp32 and rounds once
    return torch.addcmul(x.to(wide), y.to(wide), gate.to(wide)).to(x.dtype)
