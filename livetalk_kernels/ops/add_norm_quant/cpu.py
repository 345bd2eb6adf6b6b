"""``add_norm_quant`` compiled; see ``csrc/cpu/add_norm_quant.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("add_norm_quant", empty_outputs)


def run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the contract."""
    return torch.ops.livetalk.add_norm_quant_cpu.default(x, y, gate, weight, bias, eps=eps)
