"""``rms_norm_rope`` in CUDA: q and k in one launch; see ``csrc/cuda/row_norm.cuh``.

Run on a CPU by emulation only; untested on a GPU.
"""

from typing import Literal

import torch
from torch import Tensor

from ...extension_cuda import register, supports_rows
from ...spec import Case
from . import empty_outputs

register("rms_norm_rope", empty_outputs)


def supports(case: Case) -> str | None:
    """Heads of whole packs on a GPU."""
    return supports_rows(case, "d")


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
    return torch.ops.livetalk.rms_norm_rope_cuda.default(
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
