"""``rms_norm_rope`` in plain PyTorch."""

from typing import Literal

import torch
from torch import Tensor

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


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
    assert layout in {"token", "head"}, layout
    wide = math_dtype(q_BLD.dtype)
    rows = slice(row_offset, row_offset + q_BLD.shape[1])
    # A pair is one complex number and its rotation one complex product.
    rotation_Lc = torch.complex(cos_Sc[rows].to(wide), sin_Sc[rows].to(wide))
    assert rotation_Lc.shape[0] == q_BLD.shape[1], "the RoPE table ends before the tokens do"

    def norm_rope(x_BLD: Tensor, weight_D: Tensor) -> Tensor:
        x = x_BLD.to(wide)
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        normed = (x * inverse).mul_(weight_D.to(wide))
        pairs = torch.view_as_complex(normed.unflatten(-1, (num_heads, -1, 2)))
        out = torch.view_as_real(pairs.mul_(rotation_Lc[:, None])).flatten(-2).to(x_BLD.dtype)
        return out if layout == "token" else out.permute(2, 0, 1, 3).contiguous()

    return norm_rope(q_BLD, weight_q_D), norm_rope(k_BLD, weight_k_D)
