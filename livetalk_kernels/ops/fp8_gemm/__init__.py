"""``fp8_gemm``: a linear layer on FP8 operands."""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Bound, Case, Cost, OpSpec, Sizes, random_tensor
from ..quantize import reference as quantize


def fp8_gemm(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    backend: str | None = None,
) -> Tensor:
    """Compute out[m, n] = sum_k a[m, k] s_a[m, k] b[n, k] * s_b[n] + bias[n].

    Products of the FP8 values are exact; they are accumulated in fp32 (a tensor core may keep
    fewer bits), and the result is rounded once.

    Args:
        a_MK: Activations [M, K] float8_e4m3fn, contiguous.
        b_NK: Weight [N, K] float8_e4m3fn, contiguous (as ``nn.Linear`` keeps it).
        scale_a: fp32 [M, 1], or [M, K/128]: one per 1x128 block of a. Of any strides; with
            (1, M), blocks of neighbouring rows side by side, cuBLAS and CUTLASS read it best.
        scale_b: fp32 [N, 1], contiguous.
        bias_N: [N], fp32 or ``out_dtype``, or None.
        out_dtype: bfloat16, float16, float32, or float64 (then everything is fp64).
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        [M, N] in ``out_dtype``, contiguous, fresh.

    Raises:
        UserError: The blocks of ``scale_a`` do not divide K; the backend does not exist or cannot
            run this case.

    Source: scaled FP8 matrix product as in ``torch._scaled_mm``; 1x128 blocks as in DeepSeek-V3,
    arXiv 2412.19437.
    """
    (M, K), N = a_MK.shape, b_NK.shape[0]
    run = resolve_call("fp8_gemm", backend, a_MK.device, out_dtype, M=M, N=N, K=K)
    return run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=out_dtype)


def operands(
    case: Case, generator: Generator, *, block: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw and quantise a, b, scale_a and scale_b; sums over K are of the order of 1.

    ``scales``: layout of scale_a, by ``columns`` or with ``gaps``; by rows if omitted.
    """
    M, N, K = (case.dims[letter] for letter in "MNK")
    a = random_tensor(case, generator, M, K, dtype=torch.float32)
    b = random_tensor(case, generator, N, K, scale=K**-0.5, dtype=torch.float32)
    (a, scale_a), (b, scale_b) = quantize.run(a, block=block), quantize.run(b)
    scales = case.options.get("scales")
    if scales == "columns":
        scale_a = scale_a.T.contiguous().T
    elif scales == "gaps":
        scale_a = scale_a.repeat_interleave(2, dim=1)[:, ::2]
    return a, b, scale_a, scale_b


def empty_outputs(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Allocate the output of a call."""
    return a_MK.new_empty((a_MK.shape[0], b_NK.shape[0]), dtype=out_dtype)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: [M, K] times [N, K] transposed."""
    base = Case(op="fp8_gemm", device=device, dtype=dtype)
    blocks = {"block": 128}
    return (
        base.at("empty", M=0, N=32, K=128),
        base.at("one", M=1, N=16, K=32),
        base.at("odd", M=13, N=48, K=272, options={"bias": False}),
        base.at("blocks", M=9, N=64, K=384, options=blocks),
        base.at("blocks_m_major", M=9, N=64, K=384, options=blocks | {"scales": "columns"}),
        base.at("gaps", M=9, N=64, K=32, options={"scales": "gaps"}),
        base.at("ragged", M=130, N=37, K=200),
        base.at("wide", M=140, N=600, K=256, options=blocks),
        base.at("deep", M=18, N=130, K=1299),
        base.at("deep_blocks", M=18, N=64, K=1280, options=blocks),
        base.at("tall", M=1100, N=16, K=32),
        base.at("qkv_14b_ulysses8", M=1512, N=15360, K=5120, large=True),
        base.at("qkv_14b", M=12096, N=15360, K=5120, large=True),
        base.at("out_14b", M=12096, N=5120, K=5120, large=True),
        base.at("ffn_down_14b_ulysses8", M=1512, N=5120, K=13824, options=blocks, large=True),
        base.at(
            "ffn_down_14b_ulysses8_m_major",
            M=1512,
            N=5120,
            K=13824,
            options=blocks | {"scales": "columns"},
            large=True,
        ),
        base.at("ffn_down_14b", M=12096, N=5120, K=13824, options=blocks, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; a has a scale per row, or per block if ``block`` is set."""
    a, b, scale_a, scale_b = operands(case, generator, block=case.options.get("block"))
    bias = random_tensor(case, generator, case.dims["N"], dtype=torch.float32)
    arguments = (a, b, scale_a, scale_b, bias if case.options.get("bias", True) else None)
    return arguments, {"out_dtype": case.dtype}


def vector_length(case: Case) -> int:
    """Count the scales and biases that a GEMM reads, all fp32."""
    M, N, K = (case.dims[letter] for letter in "MNK")
    rows = N * (2 if case.options.get("bias", True) else 1)
    return M * (K // case.options.get("block", K)) + rows


def cost(case: Case) -> Cost:
    """Count 2 M N K; both operands are read as bytes, the result is written."""
    M, N, K = (case.dims[letter] for letter in "MNK")
    moved = (M + N) * K + M * N * case.dtype.itemsize
    return Cost(flops=2 * M * N * K, bytes=moved + 4 * vector_length(case))


def read(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Any, **_: Any) -> Sizes:
    """Read a call's case: its dims and options."""
    (M, K), N = a.shape, b.shape[0]
    blocks = scale_a.shape[1]
    options: dict[str, Any] = {"block": K // blocks} if blocks > 1 else {}
    if blocks > 1 and scale_a.stride(0) == 1 < M:
        options["scales"] = "columns"
    return {"M": M, "N": N, "K": K}, options if bias is not None else options | {"bias": False}


OP = OpSpec(
    name="fp8_gemm",
    summary="FP8 linear: A B^T with scales and bias, bf16 out",
    kind="linears",
    function=fp8_gemm,
    preference={"cpu": ("cpu",), "cuda": ("cutlass", "triton", "scaled_mm", "bf16")},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    bounds=(Bound(calc_diff=2e-5),),
)
