"""``add_norm``: add a gated branch to the residual stream and layer-normalise the sum."""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor
from .._sizes import row_sizes


def add_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute x' = x + gate * y and h = (x' - mean(x')) / sqrt(var(x') + eps) * weight + bias.

    Mean and (biased) variance run over the last dimension. All arithmetic is fp32 (fp64 for fp64
    inputs); x' is rounded once to x's dtype, h is computed from the rounded x' and rounded once.
    Modulation is ``weight = 1 + scale, bias = shift``.

    Args:
        x: Residual stream [..., D], contiguous.
        y: Branch to add [..., D], contiguous, x's dtype.
        gate: Factor of the branch [D], fp32 or x's dtype; None means 1.
        weight: Multiplier after the norm [D], fp32 or x's dtype.
        bias: Shift after the norm [D], fp32 or x's dtype.
        eps: Added to the variance.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        x' [..., D] and h [..., D], both x's dtype, contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: adaptive layer norm of DiT (Peebles & Xie 2023, arXiv 2212.09748).
    """
    run = resolve_call("add_norm", backend, x.device, x.dtype, L=x[..., 0].numel(), D=x.shape[-1])
    return run(x, y, gate, weight, bias, eps=eps)


def empty_outputs(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    return x.new_empty(x.shape), x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, L tokens, D channels."""
    base = Case(op="add_norm", device=device, dtype=dtype)
    # A mean that is large relative to the deviation, which at 30 would be lost in 16-bit x'.
    offset = 3.0 if dtype.itemsize == 2 else 30.0
    return (
        base.at("empty", B=1, L=0, D=64),
        base.at("one", B=1, L=1, D=8),
        base.at("odd", B=2, L=17, D=100),
        base.at("ungated", B=1, L=33, D=256, options={"gate": False}),
        base.at("offset", B=1, L=5, D=512, options={"offset": offset}),
        base.at("small", B=1, L=64, D=1536),
        base.at("14b_ulysses8", B=1, L=1512, D=5120, large=True),
        base.at("14b", B=1, L=12096, D=5120, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; channel vectors are fp32, as the model keeps them."""
    B, L, D = (case.dims[letter] for letter in "BLD")
    x = random_tensor(case, generator, B, L, D, offset=case.options.get("offset", 0.0))
    y = random_tensor(case, generator, B, L, D)
    gate = random_tensor(case, generator, D, dtype=torch.float32)
    weight = random_tensor(case, generator, D, scale=0.2, offset=1.0, dtype=torch.float32)
    bias = random_tensor(case, generator, D, scale=0.2, dtype=torch.float32)
    return (x, y, gate if case.options.get("gate", True) else None, weight, bias), {"eps": 1e-6}


def cost(case: Case) -> Cost:
    """Count 2 to add, 7 to normalise, per element; x and y are read, x' and h written."""
    B, L, D = (case.dims[letter] for letter in "BLD")
    elements, vectors = B * L * D, 3 if case.options.get("gate", True) else 2
    return Cost(flops=9 * elements, bytes=4 * elements * case.dtype.itemsize + 4 * vectors * D)


def read(x: Tensor, y: Tensor, gate: Tensor | None, *vectors: Tensor, **_: Any) -> Sizes:
    """Read a call's case: its dims and options."""
    return row_sizes(x), {} if gate is not None else {"gate": False}


OP = OpSpec(
    name="add_norm",
    summary="x + gate*y, then LayerNorm with scale and shift",
    kind="norms",
    function=add_norm,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
