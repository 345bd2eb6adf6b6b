"""``audio_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

import torch
from torch import Tensor

from ...extension import supports
from ...torch_ops import register_cpu
from . import empty_outputs

__all__ = ["run", "supports"]

register_cpu("audio_attention", empty_outputs)


def run(
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
) -> Tensor:
    """See the contract."""
    return torch.ops.livetalk.audio_attention_cpu.default(
        q_BLHd, k_BFSHd, v_BFSHd, tokens_per_frame=tokens_per_frame, token_offset=token_offset
    )
