"""``fp8_gemm_gelu_quant`` in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import FP8_BLOCK
from ...spec import Case
from ..fp8_gemm import reference as gemm
from ..quantize import count_blocks
from ..quantize import reference as quantize


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
    m_major: bool = False,
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    count_blocks(b_NK.shape[0], FP8_BLOCK)  # before the product, so that the error comes early
    out = gemm.run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=torch.float32)
    out = functional.gelu(out, approximate="tanh")
    return quantize.run(out, block=FP8_BLOCK, m_major=m_major)
