"""``rms_norm_rope`` compiled; see ``csrc/cpu/rms_norm_rope.cpp``."""

from typing import Literal

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("rms_norm_rope", empty_outputs)


def run(
    q_BLD: Tensor,
    k_BLD: Tensor,
    weight_q_D: Tensor,
    weight_k_D: Tensor,
    cos_Sc: Tensor,
    sin_Sc: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    row_offset: int = 0,
    layout: Literal["token", "head"] = "token",
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    end = row_offset + q_BLD.shape[1]
    assert end <= cos_Sc.shape[0], "the RoPE table ends before the tokens do"
    return torch.ops.livetalk.rms_norm_rope_cpu.default(
        q_BLD,
        k_BLD,
        weight_q_D,
        weight_k_D,
        cos_Sc,
        sin_Sc,
        num_heads=num_heads,
        eps=eps,
        row_offset=row_offset,
        layout=layout,
    )
