"""``audio_attention``: every latent frame's tokens attend to that frame's audio tokens."""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor


def audio_attention(
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Compute out[l] = softmax(q[l] k[f]^T / sqrt(d)) v[f] with f = (token_offset + l) // N.

    N is ``tokens_per_frame``. Scores and sums are fp32 (fp64 for fp64 inputs).

    Args:
        q_BLHd: Queries [B, L, H, d]; last dimension contiguous, the others may be strided.
        k_BFSHd: Audio keys of all F latent frames [B, F, S, H, d], likewise, q's dtype; S is 32,
            or 64 for two persons.
        v_BFSHd: Audio values [B, F, S, H, d], likewise.
        tokens_per_frame: Video tokens of one latent frame, h * w of the token grid.
        token_offset: Index of q's first token in the whole sequence, so that a shard of the
            sequence may start within a frame; needs token_offset + L <= F * tokens_per_frame.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        [B, L, H, d] in q's dtype, contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: audio cross-attention of MultiTalk, arXiv 2505.22647, as SoulX-FlashTalk uses it.
    """
    B, L, H, d = q_BLHd.shape
    dims = {"B": B, "L": L, "F": k_BFSHd.shape[1], "S": k_BFSHd.shape[2], "H": H, "d": d}
    run = resolve_call("audio_attention", backend, q_BLHd.device, q_BLHd.dtype, **dims)
    return run(
        q_BLHd, k_BFSHd, v_BFSHd, tokens_per_frame=tokens_per_frame, token_offset=token_offset
    )


def empty_outputs(
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
) -> Tensor:
    """Allocate the output of a call."""
    return q_BLHd.new_empty(q_BLHd.shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: L queries, F frames of N queries, S keys each, H heads of d."""
    base = Case(op="audio_attention", device=device, dtype=dtype)
    return (
        base.at("empty", B=1, L=0, F=2, N=4, S=8, H=2, d=16),
        base.at("one", B=1, L=1, F=1, N=1, S=1, H=1, d=8),
        base.at("whole_frames", B=1, L=45, F=3, N=15, S=32, H=2, d=64),
        base.at("batch", B=2, L=21, F=4, N=7, S=5, H=3, d=32, options={"token_offset": 7}),
        base.at("mid_frame", B=1, L=29, F=5, N=11, S=32, H=2, d=32, options={"token_offset": 8}),
        base.at(
            "within_a_frame", B=2, L=4, F=3, N=11, S=6, H=2, d=16, options={"token_offset": 13}
        ),
        base.at("two_persons", B=1, L=24, F=3, N=8, S=64, H=2, d=128),
        base.at(
            "long_frames", B=1, L=290, F=3, N=150, S=32, H=1, d=16, options={"token_offset": 40}
        ),
        base.at("many_keys", B=1, L=5, F=2, N=3, S=150, H=2, d=20),
        base.at(
            "14b_ulysses8",
            B=1,
            L=1512,
            F=9,
            N=1344,
            S=32,
            H=40,
            d=128,
            options={"token_offset": 4536},
            large=True,
        ),
        base.at("14b", B=1, L=12096, F=9, N=1344, S=32, H=40, d=128, large=True),
        base.at("14b_two_persons", B=1, L=12096, F=9, N=1344, S=64, H=40, d=128, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; keys and values are slices of a fused K/V result."""
    B, L, F, N, S, H, d = (case.dims[letter] for letter in "BLFNSHd")
    q = random_tensor(case, generator, B, L, H, d)
    k, v = random_tensor(case, generator, B, F, S, 2, H, d).unbind(3)
    offset = case.options.get("token_offset", 0)
    return (q, k, v), {"tokens_per_frame": N, "token_offset": offset}


def cost(case: Case) -> Cost:
    """Count two products of 2 L S d per head; q and the frames in use are read, out is written."""
    B, L, N, S, H, d = (case.dims[letter] for letter in "BLNSHd")
    offset = case.options.get("token_offset", 0)
    frames = -(-(offset + L) // N) - offset // N if L else 0
    moved = 2 * B * H * (L + frames * S) * d * case.dtype.itemsize
    return Cost(flops=4 * B * H * L * S * d, bytes=moved)


def read(q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int, **options: Any) -> Sizes:
    """Read a call's case: its dims and options."""
    B, L, H, d = q.shape
    dims = {"B": B, "L": L, "F": k.shape[1], "N": tokens_per_frame, "S": k.shape[2]}
    return dims | {"H": H, "d": d}, options


OP = OpSpec(
    name="audio_attention",
    summary="each latent frame attends to its own audio tokens",
    kind="cross",
    function=audio_attention,
    preference={"cpu": ("cpu", "sdpa"), "cuda": ("sdpa", "triton")},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
