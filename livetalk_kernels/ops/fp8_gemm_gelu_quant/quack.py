"""``fp8_gemm_gelu_quant`` as two steps: quack's product with GELU inside, our ``quantize``.

quack writes FP8 with scales only in blocks of 1x32, and not on a Hopper. The intermediate is fp32,
since the contract rounds once; quack's tanh is the GPU's approximate one, whose error FP8 hides.
"""

from torch import Tensor, float32
from torch.nn import functional

from ...precision import FP8_BLOCK
from ...spec import Case
from ..fp8_gemm import quack
from ..fp8_gemm._library import trivial
from ..quantize import count_blocks
from ._library import quantizer


def supports(case: Case) -> str | None:
    """Require what ``fp8_gemm`` does; scales per block only if the case names them."""
    return quack.reason_against(case, blocks=case.options.get("block") is not None)


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
    quack.refuse_blocks(a_MK, scale_a)
    out = trivial(a_MK, b_NK, bias_N, float32)
    if out is not None:
        out = functional.gelu(out, approximate="tanh")
    else:
        from ..fp8_gemm._quack import scaled_gelu

        out = quack.product(scaled_gelu, a_MK, b_NK, scale_a, scale_b, bias_N, float32)
    return quantizer(a_MK.device)(out, block=FP8_BLOCK, m_major=m_major)
