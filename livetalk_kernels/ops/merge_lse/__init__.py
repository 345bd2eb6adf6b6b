"""``merge_lse``: combine attention over two disjoint sets of keys, exactly."""

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, Sizes, random_tensor


def merge_lse(
    out_a_BLHd: Tensor,
    lse_a_BHL: Tensor,
    out_b_BLHd: Tensor,
    lse_b_BHL: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute lse = log(e^lse_a + e^lse_b), out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b.

    An LSE of -inf means "no keys": that side does not count. If both are -inf, out is 0 and lse is
    -inf. Arithmetic is fp32 (fp64 for fp64 inputs), with one rounding at the end.

    Args:
        out_a_BLHd: First partial result [B, L, H, d], contiguous.
        lse_a_BHL: Its natural-log LSE [B, H, L], fp32, contiguous.
        out_b_BLHd: Second partial result [B, L, H, d], contiguous, out_a's dtype.
        lse_b_BHL: Its LSE [B, H, L], fp32, contiguous.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        out [B, L, H, d] in out_a's dtype and lse [B, H, L] in lse_a's; contiguous, fresh.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: online softmax, Milakov & Gimelshein 2018, arXiv 1805.02867; ring attention, Liu et
    al. 2023, arXiv 2310.01889.
    """
    B, L, H, d = out_a_BLHd.shape
    dims = {"B": B, "L": L, "H": H, "d": d}
    run = resolve_call("merge_lse", backend, out_a_BLHd.device, out_a_BLHd.dtype, **dims)
    return run(out_a_BLHd, lse_a_BHL, out_b_BLHd, lse_b_BHL)


def empty_outputs(
    out_a_BLHd: Tensor, lse_a_BHL: Tensor, out_b_BLHd: Tensor, lse_b_BHL: Tensor
) -> tuple[Tensor, Tensor]:
    """Allocate the outputs of a call."""
    return out_a_BLHd.new_empty(out_a_BLHd.shape), lse_a_BHL.new_empty(lse_a_BHL.shape)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: L queries, H heads of d channels."""
    base = Case(op="merge_lse", device=device, dtype=dtype)
    return (
        base.at("empty", B=1, L=0, H=2, d=16),
        base.at("one", B=1, L=1, H=1, d=2),
        base.at("odd", B=2, L=13, H=3, d=24),
        base.at("blocks", B=2, L=37, H=3, d=136),
        base.at("no_keys", B=1, L=12, H=4, d=16, options={"no_keys": True}),
        base.at("far_apart", B=1, L=9, H=2, d=32, options={"spread": 80.0}),
        base.at("14b_ring8", B=1, L=1512, H=40, d=128, large=True),
        base.at("14b", B=1, L=12096, H=40, d=128, large=True),
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call; ``no_keys``: some queries lack keys on one side or both."""
    B, L, H, d = (case.dims[letter] for letter in "BLHd")
    spread = case.options.get("spread", 2.0)
    outs, lses = [], []
    for _ in range(2):
        outs.append(random_tensor(case, generator, B, L, H, d))
        lses.append(
            random_tensor(case, generator, B, H, L, scale=spread, offset=5.0, dtype=torch.float32)
        )
    if case.options.get("no_keys", False):
        lses[0][..., 0::3] = -torch.inf
        lses[1][..., 0::2] = -torch.inf
    return (outs[0], lses[0], outs[1], lses[1]), {}


def cost(case: Case) -> Cost:
    """Count 3 per element and 6 per query; two results are read, one is written."""
    B, L, H, d = (case.dims[letter] for letter in "BLHd")
    rows = B * L * H
    return Cost(flops=3 * rows * d + 6 * rows, bytes=3 * rows * (d * case.dtype.itemsize + 4))


def read(out: Tensor, lse: Tensor, *others: Tensor) -> Sizes:
    """Read a call's case: its dims and options."""
    return dict(zip("BLHd", out.shape, strict=True)), {}


OP = OpSpec(
    name="merge_lse",
    summary="merge two partial attentions by their LSE",
    kind="attention",
    function=merge_lse,
    preference={"cpu": ("cpu",), "cuda": ("triton",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
)
