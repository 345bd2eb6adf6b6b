"""Routines shared by the attention ops: the plain formula, and torch's fused attention."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..precision import HALF_DTYPES, math_dtype
from ..spec import Case

_PACKED = 32 << 20  # bytes; csrc/bindings/attention_cpu.cpp: units are packed together up to that
_KEYS, _ROUND = 192, 32  # csrc/cpu/attention.h
SCORES = 2**26  # scores held at a time by the plain formula, so that long sequences fit


def plain_attention(
    q_BLHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    scale: float | None = None,
    last_repeats: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute softmax(q k^T * scale) v and its natural-log LSE, unrounded.

    Args:
        q_BLHd: Queries.
        k_BSHd: Keys.
        v_BSHd: Values.
        scale: Factor of the scores, d^-0.5 by default.
        last_repeats: Number of equal rows that the last key and value represent.

    Returns:
        out [B, L, H, d] and LSE [B, H, L], fp32 (fp64 for fp64 inputs), contiguous. Without
        keys, out is 0 and LSE is -inf.
    """
    wide = math_dtype(q_BLHd.dtype)
    scale = q_BLHd.shape[-1] ** -0.5 if scale is None else scale
    q_BHLd, k_BHSd, v_BHSd = (x.transpose(1, 2).to(wide) for x in (q_BLHd, k_BSHd, v_BSHd))
    B, H, L, _ = q_BHLd.shape
    rows = max(1, SCORES // max(1, B * H * k_BHSd.shape[2]))
    out_BLHd = q_BHLd.new_empty(q_BLHd.shape)
    lse_BHL = q_BHLd.new_empty(B, H, L)
    for start in range(0, L, rows):
        part = slice(start, start + rows)
        scores = (q_BHLd[:, :, part] * scale) @ k_BHSd.mT
        if last_repeats > 1:
            scores[..., -1] += math.log(last_repeats)
        out_BLHd[:, part] = (scores.softmax(-1) @ v_BHSd).transpose(1, 2)
        lse_BHL[:, :, part] = scores.logsumexp(-1)
    return out_BLHd, lse_BHL


def sdpa_attention(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, last_repeats: int = 1
) -> Tensor:
    """Compute it with torch's public function: no LSE, rounded to q's dtype, contiguous."""
    if q_BLHd.numel() == 0 or k_BSHd.numel() == 0:
        return q_BLHd.new_zeros(q_BLHd.shape)  # torch divides by zero here
    if q_BLHd.is_cpu and q_BLHd.dtype in HALF_DTYPES:
        return _half_on_cpu(q_BLHd, k_BSHd, v_BSHd, last_repeats)
    bias = None
    if last_repeats > 1 and q_BLHd.is_cpu:
        bias = q_BLHd.new_zeros(1, 1, 1, k_BSHd.shape[1], dtype=math_dtype(q_BLHd.dtype))
        bias[..., -1] = math.log(last_repeats)
    elif last_repeats > 1:
        # A bias has q's dtype on CUDA, and 16 bits are too few for a logarithm: repeat the row.
        k_BSHd, v_BSHd = (
            torch.cat((x, x[:, -1:].expand(-1, last_repeats - 1, -1, -1)), dim=1)
            for x in (k_BSHd, v_BSHd)
        )
    out_BHLd = functional.scaled_dot_product_attention(
        q_BLHd.transpose(1, 2), k_BSHd.transpose(1, 2), v_BSHd.transpose(1, 2), attn_mask=bias
    )
    return out_BHLd.transpose(1, 2).contiguous()


def _half_on_cpu(q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, last_repeats: int) -> Tensor:
    """Compute it with two matrix products: scores in fp32, their softmax times v in 16 bits.

    PyTorch's fused kernel multiplies 16-bit tensors no faster than fp32 ones on CPUs without
    matrix units; the second product here is really in 16 bits.
    """
    B, L, H, _ = q_BLHd.shape
    q_BHLd, k_BHSd, v_BHSd = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    k_BHdS, q_BHLd = k_BHSd.float().mT, q_BHLd.float().mul_(q_BLHd.shape[-1] ** -0.5)
    rows = max(1, SCORES // (B * H * k_BSHd.shape[1]))
    out_BLHd = torch.empty_like(q_BLHd, memory_format=torch.contiguous_format)
    for start in range(0, L, rows):
        part = slice(start, start + rows)
        scores = q_BHLd[:, :, part] @ k_BHdS
        if last_repeats > 1:
            scores[..., -1] += math.log(last_repeats)
        out_BLHd[:, part] = (scores.softmax(-1).to(v_BHSd.dtype) @ v_BHSd).transpose(1, 2)
    return out_BLHd


def sdpa_supports(case: Case) -> str | None:
    """Return None if torch's fused attention runs a case, else why not."""
    if case.device.type not in {"cpu", "cuda"}:
        return f"torch's fused attention runs on cpu and cuda, not on {case.device.type}"
    if case.dtype not in (*HALF_DTYPES, torch.float32, torch.float64):
        return f"needs float16, bfloat16, float32 or float64, not {case.dtype}"
    return None


def sdpa_caution(case: Case) -> str | None:
    """Warn if torch's flash attention has been replaced by another implementation."""
    active = case.libraries.flash_implementation() if case.device.type == "cuda" else None
    if active is None:
        return None
    return f"torch's flash attention is {active} here, by activate_flash_attention_impl"


def packed_keys(units: int, channels: int, *contexts: int) -> int:
    """Count the bytes of fp32 keys and values that the compiled attention packs.

    Args:
        units: Heads times batch times frames that have their own keys.
        channels: Channels per head.
        contexts: Number of keys in each softmax.
    """
    blocks, longest = 0, 0
    for keys in contexts:
        count = math.ceil(keys / _KEYS)
        blocks += count
        longest = max(longest, math.ceil(math.ceil(keys / max(1, count)) / _ROUND) * _ROUND)
    unit = blocks * 8 * longest * math.ceil(channels / _ROUND) * _ROUND
    return unit * min(units, max(1, _PACKED // max(1, unit)))
