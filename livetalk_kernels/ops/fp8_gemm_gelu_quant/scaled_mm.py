"""``fp8_gemm_gelu_quant`` as three steps: PyTorch's ``scaled_mm``, its GELU, our ``quantize``.

No library fuses them. The intermediate is fp32, since the contract rounds once; it is bf16 if
``scaled_mm`` returns nothing else.
"""

from torch import Tensor, float32

from ...precision import FP8_BLOCK
from ...spec import Case
from ..fp8_gemm import scaled_mm
from ..quantize import count_blocks
from ._library import gelu_quant


def supports(case: Case) -> str | None:
    """Require what ``fp8_gemm`` does; scales per block only if the case names them."""
    return scaled_mm.reason_against(case, blocks=case.options.get("block") is not None)


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
    out = scaled_mm.run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=float32)
    return gelu_quant(out, m_major=m_major)
