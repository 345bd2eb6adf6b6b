"""``rms_norm``: RMS norm over the whole width, for the queries and keys of cross-attention."""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor
from .._sizes import row_sizes


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, backend: str | None = None) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    The arithmetic is fp32 (fp64 for fp64 inputs) and is rounded once, to x's dtype.

    Args:
        x: Rows [..., D]; the last dimension is contiguous, rows may be strided.
        weight: Multiplier [D], fp32 or x's dtype.
        eps: Added to the mean square.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        [..., D], x's dtype, contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467; Wan2.1 (arXiv 2503.20314) for "whole width".
    """
    run = resolve_call("rms_norm", backend, x.device, x.dtype, L=x[..., 0].numel(), D=x.shape[-1])
    return run(x, weight, eps=eps)


def empty_outputs(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Allocate the output of a call."""
    return x.new_empty(x.shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, L tokens, D channels."""
    base = Case(op="rms_norm", device=device, dtype=dtype)
    return (
        base.at("empty", B=1, L=0, D=64),
        base.at("one", B=1, L=1, D=8),
        base.at("odd", B=2, L=17, D=100),
        base.at("strided", B=2, L=5, D=48, options={"gap": 16}),
        base.at("small", B=1, L=64, D=1536),
        base.at("14b_text", B=1, L=512, D=5120, large=True),
        base.at("14b_ulysses8", B=1, L=1512, D=5120, large=True),
        base.at("14b", B=1, L=12096, D=5120, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; ``gap``: elements between rows."""
    B, L, D = (case.dims[letter] for letter in "BLD")
    x = random_tensor(case, generator, B, L, D + case.options.get("gap", 0))[..., :D]
    weight = random_tensor(case, generator, D, scale=0.2, offset=1.0)
    return (x, weight), {"eps": 1e-6}


def cost(case: Case) -> Cost:
    """Count 4 per element (square, add, two products); x is read, the result written."""
    elements = case.dims["B"] * case.dims["L"] * case.dims["D"]
    itemsize = case.dtype.itemsize
    return Cost(flops=4 * elements, bytes=(2 * elements + case.dims["D"]) * itemsize)


def read(x: Tensor, weight: Tensor, **_: Any) -> Sizes:
    """Read a call's case: its dims and options."""
    gap = x.stride(-2) - x.shape[-1]
    return row_sizes(x), {"gap": gap} if gap else {}


OP = OpSpec(
    name="rms_norm",
    summary="RMS norm over the whole width, with a weight",
    kind="norms",
    function=rms_norm,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
