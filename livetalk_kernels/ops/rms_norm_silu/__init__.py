"""``rms_norm_silu``: a bias, RMS norm over the channels of a video tensor, then SiLU."""

from math import prod

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor
from .._sizes import format_option


def rms_norm_silu(
    x: Tensor, gamma: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Compute SiLU(z / max(||z||, 1e-12) * sqrt(C) * gamma), z = x + bias.

    ||z|| is the L2 norm over the C channels of a pixel. All arithmetic is fp32 (fp64 for fp64
    inputs), rounded once to x's dtype; z itself is never rounded.

    Args:
        x: Activations [B, C, T, H, W] in any dense memory format; channels_last_3d is fastest.
        gamma: Weight [C], x's dtype or fp32.
        bias: Bias [C] that the convolution before has not added, x's dtype or fp32; None for
            none.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        A fresh tensor [B, C, T, H, W] of x's dtype and memory format.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: the norm and activation in front of each convolution of the Wan2.1 VAE
    (Wan et al. 2025, arXiv 2503.20314).
    """
    run = resolve_call("rms_norm_silu", backend, x.device, x.dtype, C=x.shape[1])
    return run(x, gamma, bias)


def empty_outputs(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """Allocate the output of a call."""
    return torch.empty_like(x)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, C channels, T frames, H rows, W columns."""
    base = Case(op="rms_norm_silu", device=device, dtype=dtype)
    last, biased = {"channels_last": True}, {"channels_last": True, "bias": True}
    return (
        base.at("empty", B=1, C=8, T=0, H=4, W=4, options=last),
        base.at("one", B=1, C=1, T=1, H=1, W=1),
        base.at("odd", B=2, C=13, T=3, H=5, W=7, options=last),
        base.at("planar", B=1, C=24, T=2, H=9, W=6),
        base.at("zeros", B=1, C=16, T=1, H=4, W=4, options={"channels_last": True, "scale": 0.0}),
        base.at("planar_blocks", B=1, C=5, T=2, H=13, W=15),
        base.at("planar_batch", B=3, C=12, T=1, H=3, W=5),
        base.at("bias", B=1, C=96, T=2, H=5, W=7, options=biased),
        base.at("odd_bias", B=2, C=13, T=3, H=5, W=7, options=biased),
        base.at("planar_bias", B=2, C=24, T=2, H=9, W=6, options={"bias": True}),
        base.at("frames", B=2, C=6, T=3, H=4, W=5, options={"frames_first": True}),
        base.at("blocks", B=1, C=96, T=2, H=61, W=47, options=last),
        base.at("mid_full", B=1, C=96, T=4, H=128, W=128, options=last, large=True),
        base.at("14b_half", B=1, C=192, T=4, H=384, W=224, options=last, large=True),
        base.at("14b_full", B=1, C=96, T=4, H=768, W=448, options=last, large=True),
        base.at("14b_full_bias", B=1, C=96, T=4, H=768, W=448, options=biased, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call, in the memory format of the case."""
    shape = [case.dims[letter] for letter in "BCTHW"]
    x = random_tensor(case, generator, *shape, scale=case.options.get("scale", 1.0))
    if case.options.get("channels_last", False):
        x = x.contiguous(memory_format=torch.channels_last_3d)
    if case.options.get("frames_first", False):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    gamma = random_tensor(case, generator, case.dims["C"], scale=0.2, offset=1.0)
    if not case.options.get("bias", False):
        return (x, gamma, None), {}
    return (x, gamma, random_tensor(case, generator, case.dims["C"], scale=0.5)), {}


def cost(case: Case) -> Cost:
    """Count per element 2 for the norm, 2 to scale, 4 for SiLU, 1 for a bias; x is read once."""
    elements = prod(case.dims[letter] for letter in "BCTHW")
    biased, size = bool(case.options.get("bias", False)), case.dtype.itemsize
    return Cost(
        flops=(8 + biased) * elements,
        bytes=(2 * elements + (1 + biased) * case.dims["C"]) * size,
    )


def read(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Sizes:
    """Read a call's case: its dims and options."""
    biased = {} if bias is None else {"bias": True}
    return dict(zip("BCTHW", x.shape, strict=True)), format_option(x) | biased


OP = OpSpec(
    name="rms_norm_silu",
    summary="bias, RMS norm over the channels of video, SiLU",
    kind="norms",
    function=rms_norm_silu,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
