"""``fp8_gemm_gelu_quant`` on CUTLASS: all of it in the epilogue; see ``csrc/cuda/sm90``."""

from torch import Tensor

from ...backends.cutlass import compiled, supports_linear
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from . import empty_outputs

_run = compiled("fp8_gemm_gelu_quant", empty_outputs)


def supports(case: Case) -> str | None:
    """Accept sizes that TMA can move, on a Hopper; scales per row and per block."""
    return supports_linear(case, FP8_BLOCK)


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
    q, scale = _run(a_MK, b_NK, scale_a, scale_b, bias_N, m_major=m_major)
    return q, scale
