"""``fp8_gemm_gelu_quant`` as three steps: a product in bf16, PyTorch's GELU, our ``quantize``."""

from torch import Tensor, float32

from ...precision import FP8_BLOCK
from ..fp8_gemm import bf16
from ..quantize import count_blocks
from ._library import gelu_quant

supports = bf16.supports


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
    out = bf16.run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=float32)
    return gelu_quant(out, m_major=m_major)
