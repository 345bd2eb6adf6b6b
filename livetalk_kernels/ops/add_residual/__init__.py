"""``add_residual``: a convolution's result, its bias and the residual stream in one sum."""

from math import prod

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor
from .._sizes import format_option


def add_residual(x: Tensor, y: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """Compute x + y + bias, where bias has one value for each of the C channels.

    All arithmetic is fp32 (fp64 for fp64 inputs), rounded once to x's dtype.

    Args:
        x: Result of a convolution without its bias [B, C, T, H, W]; channels_last_3d
            memory is fastest.
        y: Residual stream, x's shape and dtype.
        bias: [C], x's dtype or fp32.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        A fresh tensor [B, C, T, H, W] of x's dtype, channels_last_3d.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: the end of a residual block (He et al. 2015, arXiv 1512.03385), as in the Wan2.1 VAE.
    """
    run = resolve_call("add_residual", backend, x.device, x.dtype, C=x.shape[1])
    return run(x, y, bias)


def empty_outputs(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """Allocate the output of a call."""
    return torch.empty_like(x, memory_format=torch.channels_last_3d)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, C channels, T frames, H rows, W columns."""
    base = Case(op="add_residual", device=device, dtype=dtype)
    last = {"channels_last": True}
    return (
        base.at("empty", B=1, C=8, T=0, H=4, W=4, options=last),
        base.at("one", B=1, C=1, T=1, H=1, W=1),
        base.at("odd", B=2, C=13, T=3, H=5, W=7, options=last),
        base.at("planar", B=2, C=24, T=2, H=9, W=6),
        base.at("last_frames", B=2, C=12, T=2, H=3, W=5, options=last | {"before": 2}),
        base.at("blocks", B=1, C=96, T=2, H=31, W=23, options=last),
        base.at("mid_full", B=1, C=96, T=4, H=128, W=128, options=last, large=True),
        base.at("14b_half", B=1, C=192, T=4, H=384, W=224, options=last, large=True),
        base.at("14b_full", B=1, C=96, T=4, H=768, W=448, options=last, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; ``before``: frames of x and y that precede those to add."""
    B, C, T, H, W = (case.dims[letter] for letter in "BCTHW")
    before = case.options.get("before", 0)
    x, y = (random_tensor(case, generator, B, C, before + T, H, W) for _ in range(2))
    if case.options.get("channels_last", False):
        x, y = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, y))
    bias = random_tensor(case, generator, C, scale=0.5, dtype=torch.float32)
    return (x[:, :, before:], y[:, :, before:], bias), {}


def cost(case: Case) -> Cost:
    """Count 2 per element; x and y are read, the result written."""
    elements = prod(case.dims[letter] for letter in "BCTHW")
    return Cost(flops=2 * elements, bytes=3 * elements * case.dtype.itemsize + 4 * case.dims["C"])


def read(x: Tensor, y: Tensor, bias: Tensor) -> Sizes:
    """Read a call's case: its dims and options."""
    return dict(zip("BCTHW", x.shape, strict=True)), format_option(x)


OP = OpSpec(
    name="add_residual",
    summary="convolution + residual + bias of the channels",
    kind="norms",
    function=add_residual,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
