"""``quantize``: FP8 with one scale per row, or per block of a row."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...errors import UserError
from ...precision import FP8
from ...spec import Arguments, Bound, Case, Cost, OpSpec, Sizes, random_tensor


def quantize(
    x: Tensor, *, block: int | None = None, m_major: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Compute scale = max|x| / 448 over a row or block, and q = e4m3(clamp(x / scale, +-448)).

    ``q * scale`` recovers x within FP8 rounding. A row or block of zeros has scale 1. A NaN or
    Inf makes its whole row or block non-finite when dequantised, so it cannot be missed.

    Args:
        x: Values [..., K]; last dimension contiguous. Per-token for activations [M, K],
            per-channel for weights [N, K].
        block: None for one scale per row, or the block's length (128), which must divide K.
        m_major: Store the scales of neighbouring rows contiguously, fastest for ``fp8_gemm``.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        q [..., K] float8_e4m3fn and scale fp32 [..., 1], or [..., K / block] for blocks;
        contiguous, fresh. With ``m_major`` scale is that of a contiguous [K / block, ...].

    Raises:
        UserError: ``block`` does not divide K; the backend does not exist or cannot run this case.

    Source: OCP 8-bit floating point specification (e4m3); 1x128 blocks as in DeepSeek-V3, arXiv
    2412.19437.
    """
    dims = {"K": x.shape[-1]} if block is None else {"K": x.shape[-1], "block": block}
    run = resolve_call("quantize", backend, x.device, x.dtype, **dims)
    return run(x, block=block, m_major=m_major)


def count_blocks(length: int, block: int | None) -> int:
    """Count the scales of a row of ``length`` values.

    Raises:
        UserError: ``block`` does not divide ``length``.
    """
    if block is None:
        return 1
    if block < 1 or length % block:
        raise UserError(
            f"FP8 blocks of {block} do not divide a row of {length}; "
            f"pad it to {length + -length % max(block, 1)} or use one scale per row (block=None)"
        )
    return length // block


def dequantize(q: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute q * scale in ``dtype``.

    Args:
        q: Quantised values [..., K].
        scale: Scales [..., n], each for K / n consecutive values.
        dtype: Dtype of the product.
    """
    count = scale.shape[-1]
    blocks = q.to(dtype).unflatten(-1, (count, q.shape[-1] // count))
    return (blocks * scale.to(dtype).unsqueeze(-1)).flatten(-2)


def dequantized(outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Compute the values that (q, scale) represent, in fp64."""
    return (dequantize(*outputs, torch.float64),)


def exact(x: Tensor, *, block: int | None = None, m_major: bool = False) -> Tensor:
    """Return the result of quantisation without rounding: x itself."""
    return x


def empty_scales(like: Tensor, rows: Sequence[int], blocks: int, *, m_major: bool) -> Tensor:
    """Allocate scales of FP8 values.

    Args:
        like: A tensor on the device.
        rows: Sizes of all dimensions except the last.
        blocks: Number of scales per row.
        m_major: Store those of neighbouring rows contiguously.

    Returns:
        fp32 [*rows, blocks]: contiguous, or a view of a contiguous [blocks, *rows].
    """
    if m_major and blocks > 1:  # with one scale per row both layouts are the same
        return like.new_empty((blocks, *rows), dtype=torch.float32).movedim(0, -1)
    return like.new_empty((*rows, blocks), dtype=torch.float32)


def laid_out(scale: Tensor, *, m_major: bool) -> Tensor:
    """Return contiguous scales [..., blocks] in the layout set by ``m_major``; maybe a copy."""
    if m_major and scale.shape[-1] > 1:
        return scale.movedim(-1, 0).contiguous().movedim(0, -1)
    return scale


def empty_outputs(
    x: Tensor, *, block: int | None = None, m_major: bool = False
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    blocks = count_blocks(x.shape[-1], block)
    scale = empty_scales(x, x.shape[:-1], blocks, m_major=m_major)
    return x.new_empty(x.shape, dtype=FP8), scale


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: M rows of K values."""
    base = Case(op="quantize", device=device, dtype=dtype)
    blocks = {"block": 128}
    return (
        base.at("empty", M=0, K=128),
        base.at("one", M=1, K=16),
        base.at("odd", M=5, K=99),
        base.at("strided", M=5, K=72, options={"block": 24, "gap": 8}),
        base.at("blocks", M=7, K=384, options=blocks),
        base.at("blocks_m_major", M=7, K=384, options=blocks | {"m_major": True}),
        base.at("m_major", M=5, K=99, options={"m_major": True}),
        base.at("tiny_values", M=3, K=128, options={"scale": 1e-30}),
        base.at("large_values", M=3, K=256, options=blocks | {"scale": 1e30}),
        base.at("activation_14b_ulysses8", M=1512, K=5120, large=True),
        base.at("activation_14b", M=12096, K=5120, large=True),
        base.at("blocks_14b", M=12096, K=13824, options=blocks, large=True),
        base.at("weight_14b", M=13824, K=5120, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; ``gap``: elements between rows."""
    M, K = (case.dims[letter] for letter in "MK")
    scale, gap = case.options.get("scale", 1.0), case.options.get("gap", 0)
    x = random_tensor(case, generator, M, K + gap, scale=scale)[:, :K]
    keywords = {name: case.options[name] for name in ("block", "m_major") if name in case.options}
    return (x,), keywords


def cost(case: Case) -> Cost:
    """Count 3 per element (maximum, product, clamp); x is read, q and the scales are written."""
    M, K = (case.dims[letter] for letter in "MK")
    scales = M * count_blocks(K, case.options.get("block"))
    return Cost(flops=3 * M * K, bytes=M * K * (case.dtype.itemsize + 1) + 4 * scales)


def read(x: Tensor, *, block: int | None = None, m_major: bool = False) -> Sizes:
    """Read a call's case: its dims and options."""
    options = {} if block is None else {"block": block}
    return {"M": x[..., 0].numel(), "K": x.shape[-1]}, options | (
        {"m_major": True} if m_major else {}
    )


OP = OpSpec(
    name="quantize",
    summary="FP8 e4m3 with a scale per row or per 1x128 block",
    kind="norms",
    function=quantize,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    values=dequantized,
    truth=exact,
    bounds=(Bound(calc_diff=1e-3),),
)
