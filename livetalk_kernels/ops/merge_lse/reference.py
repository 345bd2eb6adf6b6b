"""``merge_lse`` in plain PyTorch."""

import torch
from torch import Tensor

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    out_a_BLHd: Tensor, lse_a_BHL: Tensor, out_b_BLHd: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    wide = math_dtype(out_a_BLHd.dtype)
    lse_a, lse_b = lse_a_BHL.to(wide), lse_b_BHL.to(wide)
    peak = torch.maximum(lse_a, lse_b)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)  # else -inf - -inf = NaN
    weight_a, weight_b = (lse_a - peak).exp_(), (lse_b - peak).exp_()
    total = weight_a + weight_b
    empty = total == 0
    total = total.masked_fill_(empty, 1.0)
    lse = (total.log() + peak).masked_fill_(empty, -torch.inf)

    def scaled(out_BLHd: Tensor, weight_BHL: Tensor) -> Tensor:
        return out_BLHd.to(wide) * (weight_BHL / total).mT.unsqueeze(-1)

    out = scaled(out_a_BLHd, weight_a).add_(scaled(out_b_BLHd, weight_b))
    return out.to(out_a_BLHd.dtype), lse.to(lse_a_BHL.dtype)
