"""``fp8_gemm`` with bf16 products, for GPUs whose tensor cores lack FP8, or these scales.

Operands are widened to bf16 on every call: exactly if a has a scale per row, which is applied to
the result, and with their scale, rounded to 8 bits, if it has one per block. FP8 then saves memory
but no time.
"""

import torch
from torch import Tensor

from ...backends.reasons import capability_reason, dtype_reason
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks, dequantize
from ._library import DTYPES

MIN_CAPABILITY = (8, 0)


def supports(case: Case) -> str | None:
    """Accept 16-bit and fp32 results, on a GPU with bf16 products or a CPU."""
    if (reason := dtype_reason(case.dtype, DTYPES)) is not None:
        return reason
    if case.device.type == "cpu":
        return None
    return capability_reason(case, MIN_CAPABILITY)


def run(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """See the contract."""
    if scale_a.shape[-1] > 1:
        assert scale_a.shape[-1] == count_blocks(a_MK.shape[-1], FP8_BLOCK), "scale_a's shape"
        out = product(dequantize(a_MK, scale_a, torch.bfloat16), b_NK.to(torch.bfloat16))
    else:
        out = product(a_MK.to(torch.bfloat16), b_NK.to(torch.bfloat16)).mul_(scale_a)
    out.mul_(scale_b.T)
    if bias_N is not None:
        out.add_(bias_N)
    return out.to(out_dtype)


def product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Compute A B^T of bf16 operands in fp32, which torch offers only for CUDA."""
    if a_MK.is_cuda:
        return torch.mm(a_MK, b_NK.T, out_dtype=torch.float32)
    return a_MK.float() @ b_NK.float().T
