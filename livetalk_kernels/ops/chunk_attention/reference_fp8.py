"""``chunk_attention`` with the roundings of ``triton_fp8``, in plain PyTorch; approximate.

Slower than every other backend: FP8 values are multiplied in fp32. It shows what FP8 does to the
model without a Hopper GPU.

Source: see ``triton_fp8``.
"""

import torch
from torch import Tensor

from ...precision import FP8, FP8_BLOCK, math_dtype
from ...spec import Case
from ..quantize import dequantize
from ..quantize import reference as quantize
from . import reference
from .triton_fp8 import width_reason

APPROXIMATE = True
PEAK = 256.0  # largest weight


def supports(case: Case) -> str | None:
    """Accept every case with head widths that ``triton_fp8`` supports."""
    return width_reason(case)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    B, L, H, d = q_BLHd.shape
    S = k_BSHd.shape[1]
    if not q_BLHd.numel() or not S:
        return reference.run(q_BLHd, k_BSHd, v_BSHd, scale=scale)
    wide = math_dtype(q_BLHd.dtype)
    q, k, v = (x.transpose(1, 2).to(wide) for x in (q_BLHd, k_BSHd, v_BSHd))
    q = q * (d**-0.5 if scale is None else scale)
    k_mean, v_mean = k.mean(2, keepdim=True), v.mean(2, keepdim=True)
    shift = (q * k_mean).sum(-1)
    q, v = rounded(q), rounded((v - v_mean).mT).mT
    k = torch.cat(
        [
            rounded(block.flatten(2)).view(block.shape)
            for block in (k - k_mean).split(FP8_BLOCK, dim=2)
        ],
        dim=2,
    )
    peak = q.new_full((B, H, L, 1), -torch.inf)
    total, out = torch.zeros_like(peak), torch.zeros_like(q)
    # Block by block, since weights are rounded when only scores up to their block are known.
    for keys, values in zip(k.split(FP8_BLOCK, 2), v.split(FP8_BLOCK, 2), strict=True):
        scores = q @ keys.mT
        new_peak = torch.maximum(peak, scores.amax(-1, keepdim=True))
        shrink = (peak - new_peak).exp()
        weights = (scores - new_peak).exp_() * PEAK
        total = total * shrink + weights.sum(-1, keepdim=True)
        out = out * shrink + weights.to(FP8).to(wide) @ values
        peak = new_peak
    out_BLHd = (out / total + v_mean).transpose(1, 2)
    lse_BHL = (peak + (total / PEAK).log()).squeeze(-1) + shift
    return out_BLHd.to(q_BLHd.dtype, memory_format=torch.contiguous_format), lse_BHL


def rounded(x: Tensor) -> Tensor:
    """Round rows [..., n] to FP8 with a scale each, and return them in x's dtype."""
    return dequantize(*quantize.run(x), x.dtype)
