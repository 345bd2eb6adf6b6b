"""``rms_norm`` compiled; see ``csrc/cpu/rms_norm.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("rms_norm", empty_outputs)


def run(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """See the contract."""
    return torch.ops.livetalk.rms_norm_cpu.default(x, weight, eps=eps)
