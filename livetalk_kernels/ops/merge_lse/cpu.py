"""``merge_lse`` compiled; see ``csrc/cpu/merge_lse.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("merge_lse", empty_outputs)


def run(
    out_a_BLHd: Tensor, lse_a_BHL: Tensor, out_b_BLHd: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return torch.ops.livetalk.merge_lse_cpu.default(out_a_BLHd, lse_a_BHL, out_b_BLHd, lse_b_BHL)
