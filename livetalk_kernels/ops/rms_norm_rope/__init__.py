"""``rms_norm_rope``: normalise q and k over the whole width, then rotate every head's pairs."""

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor


def rms_norm_rope(
    q_BLD: Tensor,
    k_BLD: Tensor,
    weight_q_D: Tensor,
    weight_k_D: Tensor,
    cos_Sc: Tensor,
    sin_Sc: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    row_offset: int = 0,
    layout: Literal["token", "head"] = "token",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute RoPE(q / sqrt(mean(q^2) + eps) * weight_q), and the same for k.

    The mean runs over all D = H * d channels, before they are split into heads. Token l then
    rotates each adjacent pair (2j, 2j+1) of every head by table row r = row_offset + l:
    (a, b) -> (a cos[r,j] - b sin[r,j], a sin[r,j] + b cos[r,j]). All arithmetic is fp32 (fp64 for
    fp64 inputs), with one rounding at the end.

    Args:
        q_BLD: Queries [B, L, D]; last dimension contiguous, rows may be strided (a slice of a
            fused QKV result).
        k_BLD: Keys [B, L, D], likewise, q's dtype.
        weight_q_D: Weight of q's norm [D], fp32 or q's dtype.
        weight_k_D: Weight of k's norm [D], fp32 or q's dtype.
        cos_Sc: Cosines [S, c = d/2], fp32, contiguous; one row per token of the whole sequence.
        sin_Sc: Sines [S, c], likewise.
        num_heads: H; it divides D, and d = D / H is even.
        eps: Added to the mean square.
        row_offset: Table row of token 0, for shards of a sequence; requires
            row_offset + L <= S.
        layout: ``token`` -> [B, L, H, d]; ``head`` -> [H, B, L, d], for an all-to-all.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        q and k in that layout, with their dtype, contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: RMSNorm, Zhang & Sennrich 2019, arXiv 1910.07467; RoPE, Su et al. 2021, arXiv
    2104.09864; norm before the split into heads as in Wan2.1.
    """
    B, L, D = q_BLD.shape
    dims = {"B": B, "L": L, "D": D, "H": num_heads, "d": D // num_heads}
    run = resolve_call("rms_norm_rope", backend, q_BLD.device, q_BLD.dtype, **dims)
    return run(
        q_BLD,
        k_BLD,
        weight_q_D,
        weight_k_D,
        cos_Sc,
        sin_Sc,
        num_heads=num_heads,
        eps=eps,
        row_offset=row_offset,
        layout=layout,
    )


def empty_outputs(
    q_BLD: Tensor,
    k_BLD: Tensor,
    weight_q_D: Tensor,
    weight_k_D: Tensor,
    cos_Sc: Tensor,
    sin_Sc: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    row_offset: int = 0,
    layout: str = "token",
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    B, L, D = q_BLD.shape
    d = D // num_heads
    shape = (B, L, num_heads, d) if layout == "token" else (num_heads, B, L, d)
    return q_BLD.new_empty(shape), q_BLD.new_empty(shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: B batch, L tokens, H heads of d channels, S table rows."""
    base = Case(op="rms_norm_rope", device=device, dtype=dtype)
    head = {"layout": "head"}
    return (
        base.at("empty", B=1, L=0, H=2, d=16, S=4),
        base.at("one", B=1, L=1, H=1, d=2, S=1),
        base.at("odd", B=2, L=13, H=3, d=32, S=13),
        base.at("shard", B=1, L=11, H=4, d=64, S=40, options={"row_offset": 22}),
        base.at("head_major", B=2, L=7, H=5, d=16, S=9, options=head | {"row_offset": 2}),
        base.at("odd_heads", B=2, L=5, H=7, d=24, S=6, options=head | {"row_offset": 1}),
        base.at("contiguous", B=1, L=9, H=2, d=128, S=9, options={"fused": False}),
        base.at("mid", B=1, L=64, H=4, d=128, S=64),
        base.at(
            "14b_ulysses8",
            B=1,
            L=1512,
            H=40,
            d=128,
            S=12096,
            options=head | {"row_offset": 4536},
            large=True,
        ),
        base.at("14b", B=1, L=12096, H=40, d=128, S=12096, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make a call's arguments; q and k are slices of a QKV result unless ``fused`` is False."""
    B, L, H, d, S = (case.dims[letter] for letter in "BLHdS")
    D = H * d
    if case.options.get("fused", True):
        q, k, _ = random_tensor(case, generator, B, L, 3 * D).split(D, dim=-1)
    else:
        q, k = (random_tensor(case, generator, B, L, D) for _ in range(2))
    weights = (
        random_tensor(case, generator, D, scale=0.2, offset=1.0, dtype=torch.float32)
        for _ in range(2)
    )
    angle = random_tensor(case, generator, S, d // 2, scale=2.0, dtype=torch.float32)
    keywords = {
        "num_heads": H,
        "eps": 1e-6,
        "row_offset": case.options.get("row_offset", 0),
        "layout": case.options.get("layout", "token"),
    }
    return (q, k, *weights, angle.cos(), angle.sin()), keywords


def cost(case: Case) -> Cost:
    """Count per element 2 for the mean, 2 for scaling, 3 for rotation; q and k in and out."""
    B, L, H, d = (case.dims[letter] for letter in "BLHd")
    elements = 2 * B * L * H * d
    return Cost(
        flops=7 * elements, bytes=2 * elements * case.dtype.itemsize + 4 * (L * d + 2 * H * d)
    )


def read(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    **options: Any,
) -> Sizes:
    """Read a call's case: its dims and options."""
    B, L, D = q.shape
    dims = {"B": B, "L": L, "H": num_heads, "d": D // num_heads, "S": cos.shape[0]}
    return dims, options if q.stride(1) > D else options | {"fused": False}


OP = OpSpec(
    name="rms_norm_rope",
    summary="RMS norm of q and k over the whole width, then rotary embedding",
    kind="norms",
    function=rms_norm_rope,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
