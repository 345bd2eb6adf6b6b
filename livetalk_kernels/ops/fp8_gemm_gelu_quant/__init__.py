"""``fp8_gemm_gelu_quant``: the first linear of a feed-forward, its GELU, and FP8 again."""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ...call import resolve_call
from ...precision import FP8_BLOCK
from ...spec import Arguments, Bound, Case, Cost, OpSpec, Sizes, random_tensor
from ..fp8_gemm import operands, vector_length
from ..fp8_gemm import read as read_gemm
from ..fp8_gemm import reference as gemm
from ..quantize import count_blocks, dequantized, empty_scales


def fp8_gemm_gelu_quant(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    m_major: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute GELU_tanh(A B^T s_a s_b + bias) and quantise it in blocks of 1x128.

    GELU_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Accumulation and GELU are fp32,
    the only rounding is the one to FP8. Scales are per block since a row's
    maximum would span tiles of the GEMM.

    Args:
        a_MK: Activations [M, K] float8_e4m3fn, contiguous.
        b_NK: Weight [N, K] float8_e4m3fn, contiguous; 128 divides N.
        scale_a: fp32 [M, 1], or [M, K/128]: one per 1x128 block of a. Of any strides.
        scale_b: fp32 [N, 1], contiguous.
        bias_N: [N] fp32 or bf16, or None.
        m_major: Store the scales of neighbouring rows contiguously, the layout that the next
            ``fp8_gemm`` reads fastest.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        q [M, N] float8_e4m3fn and scale [M, N/128] fp32 (q * scale is the result), as the next
        ``fp8_gemm`` takes them; contiguous, fresh. With ``m_major`` scale has strides (1, M).

    Raises:
        UserError: 128 does not divide N; the blocks of ``scale_a`` do not divide K; the backend
            does not exist or cannot run this case.

    Source: GELU, Hendrycks & Gimpel 2016, arXiv 1606.08415; blocks as in DeepSeek-V3, arXiv
    2412.19437.
    """
    (M, K), N = a_MK.shape, b_NK.shape[0]
    run = resolve_call("fp8_gemm_gelu_quant", backend, a_MK.device, torch.bfloat16, M=M, N=N, K=K)
    return run(a_MK, b_NK, scale_a, scale_b, bias_N, m_major=m_major)


def empty_outputs(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    m_major: bool = False,
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    M, N = a_MK.shape[0], b_NK.shape[0]
    blocks = count_blocks(N, FP8_BLOCK)
    return a_MK.new_empty((M, N)), empty_scales(a_MK, (M,), blocks, m_major=m_major)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: [M, K] times [N, K] transposed."""
    base = Case(op="fp8_gemm_gelu_quant", device=device, dtype=dtype)
    return (
        base.at("empty", M=0, N=128, K=128),
        base.at("one", M=1, N=128, K=32),
        base.at("odd", M=13, N=384, K=80, options={"bias": False}),
        base.at("blocks", M=5, N=256, K=256, options={"block": 128}),
        base.at("blocks_m_major", M=5, N=128, K=256, options={"block": 128, "scales": "columns"}),
        base.at("gaps", M=5, N=128, K=32, options={"scales": "gaps"}),
        base.at("m_major", M=133, N=384, K=32, options={"m_major": True}),
        base.at("ragged", M=130, N=128, K=200),
        base.at("wide", M=140, N=640, K=48),
        base.at("ffn_up_14b_ulysses8", M=1512, N=13824, K=5120, large=True),
        base.at(
            "ffn_up_14b_ulysses8_m_major",
            M=1512,
            N=13824,
            K=5120,
            options={"m_major": True},
            large=True,
        ),
        base.at("ffn_up_14b", M=12096, N=13824, K=5120, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; a has a scale per row, or per block if ``block`` is set."""
    a, b, scale_a, scale_b = operands(case, generator, block=case.options.get("block"))
    bias = random_tensor(case, generator, case.dims["N"], dtype=torch.float32)
    arguments = (a, b, scale_a, scale_b, bias if case.options.get("bias", True) else None)
    return arguments, {name: case.options[name] for name in ("m_major",) if name in case.options}


def exact(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    m_major: bool = False,
) -> Tensor:
    """Compute the result before quantisation, in fp64."""
    out = gemm.run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=torch.float64)
    return functional.gelu(out, approximate="tanh")


def cost(case: Case) -> Cost:
    """Count 2 M N K and 14 per result; operands are read, and the result written, as bytes."""
    M, N, K = (case.dims[letter] for letter in "MNK")
    scales = vector_length(case) + M * (N // FP8_BLOCK)
    return Cost(flops=2 * M * N * K + 14 * M * N, bytes=M * K + N * K + M * N + 4 * scales)


def read(*operands: Any, m_major: bool = False) -> Sizes:
    """Read a call's case: its dims and options."""
    dims, options = read_gemm(*operands)
    return dims, options | ({"m_major": True} if m_major else {})


OP = OpSpec(
    name="fp8_gemm_gelu_quant",
    summary="FP8 linear, GELU (tanh), and FP8 again in 1x128 blocks",
    kind="linears",
    function=fp8_gemm_gelu_quant,
    preference={"cpu": ("cpu",), "cuda": ("cutlass", "triton", "scaled_mm", "bf16")},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    dtypes=(torch.bfloat16,),
    values=dequantized,
    truth=exact,
    bounds=(Bound(calc_diff=1e-3),),
)
