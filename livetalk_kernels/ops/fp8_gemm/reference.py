"""``fp8_gemm`` in plain PyTorch."""

import torch
from torch import Tensor

from ...precision import FP8_BLOCK, math_dtype
from ...spec import Case
from ..quantize import count_blocks, dequantize


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


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
    wide = math_dtype(out_dtype)
    blocks = scale_a.shape[-1]
    assert blocks == 1 or blocks == count_blocks(a_MK.shape[-1], FP8_BLOCK), "scale_a's shape"
    out = dequantize(a_MK, scale_a, wide) @ b_NK.to(wide).T
    out *= scale_b.to(wide).T
    if bias_N is not None:
        out += bias_N.to(wide)
    return out.to(out_dtype)
