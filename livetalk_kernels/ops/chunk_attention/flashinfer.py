"""``chunk_attention`` with FlashInfer, one call per batch element.

It picks its FlashAttention 3 kernel on a Hopper, its FlashAttention 2 one elsewhere; the first call
with a head size compiles it.

Source: Ye et al. 2025, arXiv 2501.01005.
"""

import importlib
import math

import torch
from torch import Tensor

from ...spec import Case
from ._library import aligned, gpu_supports, neutral

HEADS = (64, 128, 256)  # channels supported by both kernels


def supports(case: Case) -> str | None:
    """Require 16 bits on CUDA, heads of 64, 128 or 256 channels, the library and its compiler."""
    reason = gpu_supports(case)
    if reason is not None:
        return reason
    if (head := case.dims.get("d", HEADS[0])) not in HEADS:
        return f"needs heads of 64, 128 or 256 channels, not {head}"
    return case.libraries.problem("flashinfer")


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    attention = importlib.import_module("flashinfer").single_prefill_with_kv_cache
    batch = zip(aligned(q_BLHd), aligned(k_BSHd), aligned(v_BSHd), strict=True)
    outs, lses = zip(
        *(attention(q, k, v, sm_scale=scale, return_lse=True) for q, k, v in batch), strict=True
    )
    # Its LSE is [L, H], in binary logarithm.
    lse_BHL = torch.stack(lses).transpose(1, 2).contiguous()
    return torch.stack(outs), lse_BHL.mul_(math.log(2))
