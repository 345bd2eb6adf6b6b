"""``chunk_attention`` with the one of torch's fused kernels that suits the case.

CPU: the flash kernel, any stride, any float dtype. CUDA: the flash kernel for float16 and
bfloat16 and heads of up to 256 channels, else the memory-efficient one. ``sdpa_flash``,
``sdpa_cudnn`` and ``sdpa_math`` select one by name.
"""

import torch
from torch import Tensor

from ...precision import HALF_DTYPES
from ...spec import Case
from .._attention import sdpa_caution as caution
from .._attention import sdpa_supports
from ._sdpa import attend, efficient, flash

DIFFERENTIABLE = True
__all__ = ["caution", "run", "supports"]

FLASH_HEAD = 256  # channels


def supports(case: Case) -> str | None:
    """Accept everything on a CPU; on CUDA what the flash or memory-efficient kernel supports."""
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
    fits = q_BLHd.dtype in HALF_DTYPES and q_BLHd.shape[-1] <= FLASH_HEAD
    kernel = flash if q_BLHd.is_cpu or fits else efficient
    return attend(kernel, q_BLHd, k_BSHd, v_BSHd, scale)
