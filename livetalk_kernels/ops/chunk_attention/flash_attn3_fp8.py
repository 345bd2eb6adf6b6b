"""``chunk_attention`` on FlashAttention 3's FP8 kernel, approximate.

q, k and v are e4m3 with one scale per batch element and head, which the library takes as
``descale`` [B, H]; it rounds the softmax's weights to e4m3 itself, and its result is bf16.
Quantisation is plain PyTorch, a few passes over q, k and v; unlike in ``triton_fp8``, outliers are
not smoothed.

Source: Shah et al. 2024, arXiv 2407.08608, section 3.3.
"""

import importlib

import torch
from torch import Tensor

from ...spec import Case
from . import flash_attn3
from ._library import as_fp8, neutral

APPROXIMATE = True
MULTIPLE = 16  # of channels per head, so that FP8 rows are whole units of 16 bytes


def supports(case: Case) -> str | None:
    """Require what ``flash_attn3`` does, and channels in multiples of 16."""
    head = case.dims.get("d", MULTIPLE)
    if head % MULTIPLE:
        return f"needs heads of channels in multiples of {MULTIPLE}, not {head}"
    return flash_attn3.supports(case)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    attention = importlib.import_module("flash_attn_interface").flash_attn_func
    (q, q_scale), (k, k_scale), (v, v_scale) = (
        as_fp8(x, over=(1, 3)) for x in (q_BLHd, k_BSHd, v_BSHd)
    )
    out_BLHd, lse_BHL = attention(
        q,
        k,
        v,
        softmax_scale=scale,
        q_descale=q_scale.flatten(1),
        k_descale=k_scale.flatten(1),
        v_descale=v_scale.flatten(1),
        return_attn_probs=True,
    )[:2]
    out_BLHd = out_BLHd.to(q_BLHd.dtype, memory_format=torch.contiguous_format)
    return out_BLHd, lse_BHL.contiguous()
