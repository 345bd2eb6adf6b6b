"""Torch's attention operators that return the LSE, for the ``sdpa`` backends.

These are the operators under ``scaled_dot_product_attention``, called by name: no global switch is
needed to choose one. Calls of the CUDA ones follow their schemas.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...precision import math_dtype
from .._attention import SCORES
from ._library import neutral

aten = torch.ops.aten
Kernel = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]
"""q [B, H, L, d], k and v [B, H, S, d], scale -> out [B, H, L, d], LSE [B, H, >= L] or more."""


def attend(
    kernel: Kernel, q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Compute the op with one of the kernels below."""
    # Torch's CPU kernel divides by zero without queries or keys.
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    # The operators assume this and give wrong numbers otherwise.
    assert all(x.stride(-1) == 1 for x in (q_BLHd, k_BSHd, v_BSHd)), "strided channels"
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    out, lse = kernel(q, k, v, scale)
    B, L, H, _ = q_BLHd.shape
    return out.transpose(1, 2).contiguous(), lse.reshape(B, H, -1)[..., :L].contiguous()


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Call FlashAttention: torch's own on a CPU (any float dtype), version 2 on CUDA (16 bits)."""
    if q.is_cpu:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    else:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    return out, lse


def efficient(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Call the memory-efficient kernel, on CUDA; it pads the LSE's rows to a multiple of 32."""
    out, lse = aten._scaled_dot_product_efficient_attention(
        q, k, v, None, compute_log_sumexp=True, scale=scale
    )[:2]
    return out, lse


def cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Call cuDNN's kernel, on CUDA; its LSE is [B, H, L, 1]."""
    out, lse = aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, compute_log_sumexp=True, scale=scale
    )[:2]
    return out, lse


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Use plain matrix products; the LSE, which torch does not return here, takes a third one."""
    B, H, L, d = q.shape
    factor = d**-0.5 if scale is None else scale
    wide, keys = math_dtype(q.dtype), k.mT.to(math_dtype(q.dtype))
    out, lse = torch.empty_like(q), q.new_empty((B, H, L), dtype=wide)
    rows = max(1, SCORES // (B * H * k.shape[2]))
    for start in range(0, L, rows):
        part = slice(start, start + rows)
        queries = q[:, :, part]
        out[:, :, part], _ = aten._scaled_dot_product_attention_math(queries, k, v, scale=scale)
        lse[:, :, part] = ((queries.to(wide) * factor) @ keys).logsumexp(-1)
    return out, lse
