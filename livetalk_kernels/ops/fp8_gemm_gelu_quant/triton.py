"""``fp8_gemm_gelu_quant`` in Triton; the kernel is stored with ``fp8_gemm``'s."""

from torch import Tensor

from ...backends.triton_launch import Launch, register
from ..fp8_gemm.triton import BLOCK_M, STAGES, descriptor, gemm_arguments, supports
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    m_major: bool = False,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ..fp8_gemm._triton import fp8_gemm_gelu_quant_kernel

    q, scales = outputs
    if not q.numel():
        return []
    programs, arguments = gemm_arguments(a_MK, b_NK, scale_a, scale_b, bias_N, tma_out=True)
    arguments |= {
        "q": descriptor(q, BLOCK_M), "scales": scales,
        "out_row": scales.stride(0), "out_step": scales.stride(1),
    }  # fmt: skip
    return [
        Launch(
            kernel=fp8_gemm_gelu_quant_kernel,
            grid=(programs,),
            arguments=arguments,
            warps=8,
            stages=STAGES,
        )
    ]


run = register("fp8_gemm_gelu_quant", empty_outputs, launches)
