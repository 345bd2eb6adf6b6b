"""Shared by backends on third-party kernels: supported GPUs, and operands."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...backends.reasons import capability_reason, device_reason, dtype_reason
from ...precision import FP8, FP8_MAX, HALF_DTYPES, math_dtype
from ...spec import Case

ALIGNMENT = 8  # 16-bit elements: the kernels read 16 bytes at a time
MAX_HEAD = 256  # channels
MIN_CAPABILITY = (8, 0)


def gpu_supports(case: Case, *, max_head: int = MAX_HEAD) -> str | None:
    """Return None if 16-bit attention kernels for NVIDIA GPUs support a case, else why not."""
    reason = device_reason(case.device, "cuda") or dtype_reason(case.dtype, HALF_DTYPES)
    if reason is not None:
        return reason
    head = case.dims.get("d", ALIGNMENT)
    if head % ALIGNMENT or head > max_head:
        return (
            f"needs heads of at most {max_head} channels, in multiples of {ALIGNMENT}; not {head}"
        )
    return capability_reason(case, MIN_CAPABILITY)


def neutral(q_BLHd: Tensor, k_BSHd: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the result without queries or keys, which the kernels do not accept; else None."""
    if q_BLHd.numel() and k_BSHd.numel():
        return None
    B, L, H, _ = q_BLHd.shape
    lse = q_BLHd.new_full((B, H, L), -torch.inf, dtype=math_dtype(q_BLHd.dtype))
    return q_BLHd.new_zeros(q_BLHd.shape), lse


def aligned(x_BLHd: Tensor) -> Tensor:
    """Return the tensor, copied if its rows do not start at multiples of 16 bytes."""
    assert x_BLHd.stride(-1) == 1, "strided channels"
    strides = (
        step for step, size in zip(x_BLHd.stride()[:-1], x_BLHd.shape[:-1], strict=True) if size > 1
    )
    if any(start % ALIGNMENT for start in (x_BLHd.storage_offset(), *strides)):
        return x_BLHd.clone(memory_format=torch.contiguous_format)
    return x_BLHd


def as_fp8(x_BLHd: Tensor, *, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Round to e4m3.

    Args:
        x_BLHd: [B, L, H, d], not empty.
        over: Dimensions that share a scale: (1, 3) for one per head.

    Returns:
        float8_e4m3fn [B, L, H, d], contiguous, and fp32 scales to multiply it by, with size 1 in
        the dimensions ``over``.
    """
    peak = x_BLHd.abs().amax(over, keepdim=True).float()
    scale = (peak / FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(peak == 0, 1.0, scale)
    values = (x_BLHd.float() / scale).clamp_(-FP8_MAX, FP8_MAX)
    return values.to(FP8, memory_format=torch.contiguous_format), scale


def flash_attention(
    function: Callable[..., Any],
    q_BLHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute the op with ``flash_attn_func`` of FlashAttention 2 or 3.

    Both take [B, L, H, d] with any strides except the last and return a natural-log LSE [B, H, L];
    version 2 returns a third tensor, which is empty without dropout.
    """
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    q, k, v = aligned(q_BLHd), aligned(k_BSHd), aligned(v_BSHd)
    out_BLHd, lse_BHL = function(q, k, v, softmax_scale=scale, return_attn_probs=True)[:2]
    return out_BLHd.contiguous(), lse_BHL.contiguous()
