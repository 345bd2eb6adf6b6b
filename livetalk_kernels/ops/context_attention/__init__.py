"""``context_attention``: cross-attention to image and text, each with its own softmax.

It has no FP8 backend. By arithmetic, not measured: at 14B and 768x448 it takes 7.6 TFLOP per step,
12 ms at the 650 TFLOP/s that 16-bit attention reaches on a Hopper, 8 ms at FP8's 900. Rounding all
queries costs 2 ms of that, so a library's FP8 kernel would save 2 ms of a 600 ms step; and none has
a bias for ``text_repeats``, so the text's padding would be multiplied again.
"""

from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor


def context_attention(
    q_BLHd: Tensor,
    k_image_BSHd: Tensor,
    v_image_BSHd: Tensor,
    k_text_BSHd: Tensor,
    v_text_BSHd: Tensor,
    *,
    text_repeats: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Compute softmax(q k_image^T / sqrt(d)) v_image + softmax(q k_text^T / sqrt(d)) v_text.

    All rows of both contexts are attended to, padding included, as the model was trained. The
    rows that pad a prompt are equal, so one of them, in last place, can represent all: n equal keys
    are one key whose score is larger by log(n), which is exact. Scores and sums
    are fp32 (fp64 for fp64 inputs).

    Args:
        q_BLHd: Queries [B, L, H, d]; last dimension contiguous, the others may be strided.
        k_image_BSHd: Image keys [B, S_image, H, d], likewise, q's dtype.
        v_image_BSHd: Image values [B, S_image, H, d], likewise.
        k_text_BSHd: Text keys [B, S_text, H, d], likewise.
        v_text_BSHd: Text values [B, S_text, H, d], likewise.
        text_repeats: Number of equal rows that the last text key and value represent, at least 1.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        [B, L, H, d] in q's dtype, contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: decoupled cross-attention of IP-Adapter, arXiv 2308.06721, as used by Wan2.1 I2V.
    """
    B, L, H, d = q_BLHd.shape
    dims = {"B": B, "L": L, "S": k_text_BSHd.shape[1], "H": H, "d": d}
    run = resolve_call("context_attention", backend, q_BLHd.device, q_BLHd.dtype, **dims)
    return run(
        q_BLHd, k_image_BSHd, v_image_BSHd, k_text_BSHd, v_text_BSHd, text_repeats=text_repeats
    )


def empty_outputs(
    q_BLHd: Tensor,
    k_image_BSHd: Tensor,
    v_image_BSHd: Tensor,
    k_text_BSHd: Tensor,
    v_text_BSHd: Tensor,
    *,
    text_repeats: int = 1,
) -> Tensor:
    """Allocate the output of a call."""
    return q_BLHd.new_empty(q_BLHd.shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: L queries, I image keys, S text keys, H heads of d channels."""
    base = Case(op="context_attention", device=device, dtype=dtype)
    return (
        base.at("empty", B=1, L=0, I=3, S=5, H=2, d=16),
        base.at("one", B=1, L=1, I=1, S=1, H=1, d=8),
        base.at("odd", B=2, L=13, I=17, S=29, H=3, d=32),
        base.at("padded", B=1, L=40, I=17, S=24, H=2, d=64, options={"text_repeats": 489}),
        base.at("small", B=1, L=40, I=257, S=512, H=2, d=64),
        base.at("blocks", B=1, L=130, I=64, S=128, H=1, d=32, options={"text_repeats": 3}),
        base.at("unaligned", B=1, L=9, I=70, S=5, H=2, d=20, options={"text_repeats": 2}),
        base.at("14b_ulysses8", B=1, L=1512, I=257, S=512, H=40, d=128, large=True),
        base.at("14b", B=1, L=12096, I=257, S=512, H=40, d=128, large=True),
        base.at(
            "14b_padded", B=1, L=12096, I=257, S=64, H=40, d=128,
            options={"text_repeats": 449}, large=True,
        ),
    )  # fmt: skip


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; keys and values are slices of fused K/V results."""
    B, L, I, S, H, d = (case.dims[letter] for letter in "BLISHd")  # noqa: E741
    q = random_tensor(case, generator, B, L, H, d)
    k_image, v_image = random_tensor(case, generator, B, I, 2, H, d).unbind(2)
    k_text, v_text = random_tensor(case, generator, B, S, 2, H, d).unbind(2)
    return (q, k_image, v_image, k_text, v_text), dict(case.options)


def cost(case: Case) -> Cost:
    """Count two products of 2 L (I + S) d per head; all is read once, out is written."""
    B, L, I, S, H, d = (case.dims[letter] for letter in "BLISHd")  # noqa: E741
    keys = I + S
    return Cost(
        flops=4 * B * H * L * keys * d, bytes=2 * B * H * (L + keys) * d * case.dtype.itemsize
    )


def read(
    q: Tensor, k_image: Tensor, v_image: Tensor, k_text: Tensor, v_text: Tensor, **options: Any
) -> Sizes:
    """Read a call's case: its dims and options."""
    B, L, H, d = q.shape
    return {"B": B, "L": L, "I": k_image.shape[1], "S": k_text.shape[1], "H": H, "d": d}, options


OP = OpSpec(
    name="context_attention",
    summary="cross-attention to image and text, two softmaxes summed",
    kind="cross",
    function=context_attention,
    preference={"cpu": ("cpu", "sdpa"), "cuda": ("sdpa", "triton")},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
