"""``chunk_attention`` by torch's fused kernels, called by the operators that return the LSE.

CPU: the flash kernel, any stride, any float dtype. CUDA: the flash kernel for float16 and
bfloat16 and heads of up to 256 channels, else the memory-efficient one. The CUDA paths follow the
operators' schemas and are untested.
"""

import torch
from torch import Tensor

from ...spec import Case
from .._attention import HALF_DTYPES, sdpa_supports

aten = torch.ops.aten
FLASH_HEAD = 256  # channels


def supports(case: Case) -> str | None:
    """Everything on a CPU; on CUDA what the flash and the memory-efficient kernel take."""
    reason = sdpa_supports(case)
    if reason is not None or case.device.type == "cpu":
        return reason
    if case.dtype == torch.float64:
        return "torch's fused attention has no float64 on cuda"
    head = case.dims.get("d", 0)
    if head % 8:
        return f"on cuda it needs heads of channels in multiples of 8, not {head}"
    return None


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    B, L, H, _ = q_BLHd.shape
    if q_BLHd.numel() == 0 or k_BSHd.numel() == 0:  # torch's CPU kernel divides by zero here
        lse_dtype = torch.float64 if q_BLHd.dtype == torch.float64 else torch.float32
        lse = q_BLHd.new_full((B, H, L), -torch.inf, dtype=lse_dtype)
        return q_BLHd.new_zeros(q_BLHd.shape), lse
    # The operators below take this for granted and give wrong numbers otherwise.
    assert all(x.stride(-1) == 1 for x in (q_BLHd, k_BSHd, v_BSHd)), "strided channels"
    q, k, v = (x.transpose(1, 2) for x in (q_BLHd, k_BSHd, v_BSHd))
    if q.is_cpu:
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    elif q.dtype in HALF_DTYPES and q.shape[-1] <= FLASH_HEAD:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    else:
        out, lse = aten._scaled_dot_product_efficient_attention(
            q, k, v, None, compute_log_sumexp=True, scale=scale
        )[:2]
    # The memory-efficient kernel pads the LSE's rows to a multiple of 32.
    return out.transpose(1, 2).contiguous(), lse[..., :L].contiguous()
