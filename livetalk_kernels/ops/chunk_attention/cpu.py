"""``chunk_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("chunk_attention", empty_outputs)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return torch.ops.livetalk.chunk_attention_cpu.default(q_BLHd, k_BSHd, v_BSHd, scale=scale)
