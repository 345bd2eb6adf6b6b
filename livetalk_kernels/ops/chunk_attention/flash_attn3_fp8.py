"""``chunk_attention`` on FlashAttention 3's FP8 kernel, approximate. Untested on a GPU.

q, k and v are e4m3 with one scale per batch element and head, which the library takes as
``descale`` [B, H]; it rounds the softmax's weights to e4m3 itself, and its result is bf16. Here
quantising is plain PyTorch, a few passes over q, k and v; outliers are not smoothed, as they are by
``triton_fp8``.

CuDNN has an FP8 kernel as well, without a backend: torch has no operator for it, and cuDNN's own
``sdpa_fp8`` takes one scale for all heads, and a scale of the weights that has to be known before.

Source: Shah et al. 2024, arXiv 2407.08608, section 3.3.
"""

import importlib

import torch
from torch import Tensor

from ...precision import FP8, FP8_MAX
from ...spec import Case
from . import flash_attn3
from ._library import neutral

APPROXIMATE = True
MULTIPLE = 16  # of a head's channels, that rows of FP8 are 16 bytes


def supports(case: Case) -> str | None:
    """What ``flash_attn3`` asks, and heads in multiples of 16 channels."""
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
    (q, q_scale), (k, k_scale), (v, v_scale) = map(quantize_heads, (q_BLHd, k_BSHd, v_BSHd))
    out_BLHd, lse_BHL = attention(
        q,
        k,
        v,
        softmax_scale=scale,
        q_descale=q_scale,
        k_descale=k_scale,
        v_descale=v_scale,
        return_attn_probs=True,
    )[:2]
    out_BLHd = out_BLHd.to(q_BLHd.dtype, memory_format=torch.contiguous_format)
    return out_BLHd, lse_BHL.contiguous()


def quantize_heads(x_BLHd: Tensor) -> tuple[Tensor, Tensor]:
    """Round to e4m3 with a scale per head.

    Args:
        x_BLHd: [B, L, H, d], not empty.

    Returns:
        float8_e4m3fn [B, L, H, d], contiguous, and fp32 scales [B, H] to multiply with.
    """
    peak = x_BLHd.abs().amax((1, 3)).float()
    scale = (peak / FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(peak == 0, 1.0, scale)
    values = (x_BLHd.float() / scale[:, None, :, None]).clamp_(-FP8_MAX, FP8_MAX)
    return values.to(FP8, memory_format=torch.contiguous_format), scale
