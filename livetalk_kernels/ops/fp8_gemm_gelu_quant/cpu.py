"""``fp8_gemm_gelu_quant`` compiled; see ``csrc/cpu/fp8_gemm.cpp``."""

from torch import Tensor

from ...backends.cpu import compiled, supports
from ...precision import FP8_BLOCK
from ..fp8_gemm.cpu import workspace
from ..quantize import count_blocks, laid_out
from . import empty_outputs

__all__ = ["run", "supports", "workspace"]

_run = compiled("fp8_gemm_gelu_quant", empty_outputs)


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
    count_blocks(b_NK.shape[0], FP8_BLOCK)  # rejects a row that they do not divide
    if scale_a.shape[-1] > 1:
        count_blocks(a_MK.shape[-1], FP8_BLOCK)
    q, scale = _run(a_MK, b_NK, scale_a, scale_b, bias_N)
    return q, laid_out(scale, m_major=m_major)
