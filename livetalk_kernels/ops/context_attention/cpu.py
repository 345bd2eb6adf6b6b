"""``context_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("context_attention", empty_outputs)


def run(
    q_BLHd: Tensor,
    k_image_BSHd: Tensor,
    v_image_BSHd: Tensor,
    k_text_BSHd: Tensor,
    v_text_BSHd: Tensor,
    *,
    text_repeats: int = 1,
) -> Tensor:
    """See the contract."""
    return torch.ops.livetalk.context_attention_cpu.default(
        q_BLHd, k_image_BSHd, v_image_BSHd, k_text_BSHd, v_text_BSHd, text_repeats=text_repeats
    )
