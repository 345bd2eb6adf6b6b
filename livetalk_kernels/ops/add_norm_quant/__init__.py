"""``add_norm_quant``: ``add_norm`` whose normalised output goes to an FP8 linear."""

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...precision import FP8
from ...spec import Arguments, Bound, Case, Cost, OpSpec
from .. import add_norm as plain
from ..add_norm import read
from ..add_norm import reference as plain_reference
from ..quantize import dequantize


def add_norm_quant(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x' = x + gate * y and h = LayerNorm(x') * weight + bias, with h quantised per token.

    As ``add_norm``, but h stays in fp32 and is rounded only once, to FP8:
    scale = max|h| / 448 over the token, q = e4m3(clamp(h / scale, +-448)). A token of zeros has
    scale 1; NaN and Inf stay visible in q or scale.

    Args:
        x: Residual stream [..., D], contiguous.
        y: Branch to add [..., D], contiguous, x's dtype.
        gate: Factor of the branch [D], fp32 or x's dtype; None means 1.
        weight: Multiplier after the norm [D], fp32 or x's dtype.
        bias: Shift after the norm [D], fp32 or x's dtype.
        eps: Added to the variance.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        x' [..., D] in x's dtype, q [..., D] float8_e4m3fn, scale [..., 1] fp32 (q * scale = h);
        contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: ``add_norm`` and ``quantize``.
    """
    run = resolve_call(
        "add_norm_quant", backend, x.device, x.dtype, L=x[..., 0].numel(), D=x.shape[-1]
    )
    return run(x, y, gate, weight, bias, eps=eps)


def empty_outputs(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the outputs of a call."""
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=FP8), scale


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, L tokens, D channels."""
    base = Case(op="add_norm_quant", device=device, dtype=dtype)
    return (
        base.at("empty", B=1, L=0, D=64),
        base.at("one", B=1, L=1, D=16),
        base.at("odd", B=2, L=17, D=100),
        base.at("ungated", B=1, L=9, D=256, options={"gate": False}),
        base.at("small", B=1, L=32, D=1536),
        base.at("14b_ulysses8", B=1, L=1512, D=5120, large=True),
        base.at("14b", B=1, L=12096, D=5120, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call, as for ``add_norm``."""
    return plain.make_inputs(case, generator)


def values(outputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the new residual stream, and the normalised one dequantised in fp64."""
    x_new, q, scale = outputs
    return x_new, dequantize(q, scale, torch.float64)


def cost(case: Case) -> Cost:
    """Count ``add_norm`` and 3 more per element; h is written as bytes and a scale per token."""
    B, L, D = (case.dims[letter] for letter in "BLD")
    tokens, size = B * L, case.dtype.itemsize
    vectors = 3 if case.options.get("gate", True) else 2
    return Cost(flops=12 * tokens * D, bytes=tokens * (D * (3 * size + 1) + 4) + 4 * vectors * D)


OP = OpSpec(
    name="add_norm_quant",
    summary="add_norm with the normalised output in FP8, a scale per token",
    kind="norms",
    function=add_norm_quant,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    values=values,
    truth=plain_reference.run,
    bounds=(Bound(), Bound(calc_diff=1e-3)),
)
