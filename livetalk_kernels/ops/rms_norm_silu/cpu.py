"""``rms_norm_silu`` compiled; see ``csrc/cpu/rms_norm_silu.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("rms_norm_silu", empty_outputs)


def run(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the contract."""
    return torch.ops.livetalk.rms_norm_silu_cpu.default(x, gamma, bias)
