"""``chunk_attention``: bidirectional attention over a whole chunk, with LSE."""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...precision import math_dtype
from ...spec import Arguments, Bound, Case, Cost, OpSpec, Sizes, random_tensor


def chunk_attention(
    q_BLHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute out = softmax(q k^T * scale) v and lse = log sum_s exp(q k_s * scale), per head.

    No mask: every query sees every key. Scores and sums are fp32 (fp64 for fp64 inputs). With no
    key at all (S = 0) out is 0 and lse is -inf, the neutral element of ``merge_lse``.

    Approximate backends (FP8) must meet ``calc_diff`` < 2e-2 for out and < 1e-3 for lse. If the
    scores' standard deviation is 1, out is off by about 5 % in relative L2 (1.4e-3), and lse by
    0.02 to 0.1; at 6, out by up to 14 % (1e-2), since rounding q and k shifts scores in proportion.

    Args:
        q_BLHd: Queries [B, L, H, d]; last dimension contiguous, the others may be strided.
        k_BSHd: Keys [B, S, H, d], likewise, q's dtype.
        v_BSHd: Values [B, S, H, d], likewise, q's dtype.
        scale: Factor of the scores, d^-0.5 by default.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        out [B, L, H, d] in q's dtype and lse [B, H, L] fp32 (fp64 for fp64 inputs), in natural
        logarithm; contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: Vaswani et al. 2017, arXiv 1706.03762; LSE as in FlashAttention, arXiv 2205.14135.
    """
    B, L, H, d = q_BLHd.shape
    dims = {"B": B, "L": L, "S": k_BSHd.shape[1], "H": H, "d": d}
    run = resolve_call("chunk_attention", backend, q_BLHd.device, q_BLHd.dtype, **dims)
    return run(q_BLHd, k_BSHd, v_BSHd, scale=scale)


def empty_outputs(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    B, L, H, _ = q_BLHd.shape
    lse = q_BLHd.new_empty((B, H, L), dtype=math_dtype(q_BLHd.dtype))
    return q_BLHd.new_empty(q_BLHd.shape), lse


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: L queries, S keys, H heads of d channels."""
    base = Case(op="chunk_attention", device=device, dtype=dtype)
    return (
        base.at("no_queries", B=1, L=0, S=5, H=2, d=16),
        base.at("no_keys", B=1, L=3, S=0, H=2, d=16),
        base.at("one", B=1, L=1, S=1, H=1, d=8),
        base.at("odd", B=2, L=13, S=37, H=3, d=32),
        base.at("fused", B=1, L=70, S=70, H=4, d=64, options={"fused": True}),
        base.at("scaled", B=1, L=33, S=33, H=2, d=128, options={"scale": 0.02}),
        base.at("large_scores", B=1, L=9, S=40, H=2, d=64, options={"spread": 6.0}),
        base.at("blocks", B=1, L=150, S=300, H=1, d=64),
        base.at("whole_blocks", B=1, L=5, S=256, H=2, d=16, options={"scale": -0.1}),
        base.at("wide_head", B=2, L=9, S=9, H=1, d=96, options={"fused": True}),
        base.at("unaligned", B=1, L=20, S=200, H=2, d=20),
        base.at("mid", B=1, L=576, S=576, H=4, d=128, large=True),
        base.at("14b_ulysses8", B=1, L=12096, S=12096, H=5, d=128, large=True),
        base.at("14b_ring8", B=1, L=1512, S=1512, H=40, d=128, large=True),
        base.at("14b", B=1, L=12096, S=12096, H=40, d=128, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; ``fused``: q, k and v are slices of one tensor."""
    B, L, S, H, d = (case.dims[letter] for letter in "BLSHd")
    if case.options.get("fused", False):
        q, k, v = random_tensor(case, generator, B, L, 3, H, d).unbind(2)
    else:
        spread = case.options.get("spread", 1.0)
        q = random_tensor(case, generator, B, L, H, d, scale=spread)
        k, v = (random_tensor(case, generator, B, S, H, d) for _ in range(2))
    return (q, k, v), {"scale": case.options.get("scale")}


def cost(case: Case) -> Cost:
    """Count two products of 2 L S d per head; q, k, v are read, out and LSE written."""
    B, L, S, H, d = (case.dims[letter] for letter in "BLSHd")
    moved = 2 * B * H * (L + S) * d * case.dtype.itemsize
    return Cost(flops=4 * B * H * L * S * d, bytes=moved + 4 * B * H * L)


def read(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Sizes:
    """Read a call's case: its dims and options."""
    B, L, H, d = q.shape
    fused = q.stride(1) > H * d
    return (
        {"B": B, "L": L, "S": k.shape[1], "H": H, "d": d},
        options | {"fused": True} if fused else options,
    )


OP = OpSpec(
    name="chunk_attention",
    summary="attention over the whole chunk, with LSE",
    kind="attention",
    function=chunk_attention,
    preference={
        "cpu": ("cpu", "sdpa"),
        "cuda": ("sdpa", "triton"),  # FlashAttention 2: without wgmma or tcgen05 it loses nothing
        "cuda 9.0": ("flash_attn3", "sdpa_cudnn", "triton", "sdpa"),
        "cuda 10": ("sdpa_cudnn", "triton", "sdpa"),
    },
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    # torch's 16-bit CPU kernel has a fast exp: 5e-5 in an LSE, versus bf16's rounding of 4e-3.
    bounds=(Bound(), Bound(half_slack=1e-4)),
    # Twice and four times the worst of 100 seeds, which occurs in `large_scores`.
    approximate_bounds=(Bound(calc_diff=2e-2), Bound(calc_diff=1e-3)),
)
