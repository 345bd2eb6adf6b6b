"""``causal_conv3d``: convolution over video that never looks ahead, with an explicit history."""

from math import prod

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Case, Cost, OpSpec, random_tensor

Stride = tuple[int, int, int]
Padding = tuple[int, int, int, int]


def causal_conv3d(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    zero_frames: int = 0,
    stride: Stride = (1, 1, 1),
    padding: Padding = (0, 0, 0, 0),
    backend: str | None = None,
) -> Tensor:
    """Compute y[o, t, h, w] = bias[o] + sum of weight[o, i, a, b, c] * frames[i, s*t + (a, b, c)].

    ``frames`` is zeros (``zero_frames`` of them), then ``history``, then ``x`` along time, with
    zero rows and columns around each frame. Nothing else is padded in time, so T' = (zero_frames +
    t + T - k_t) // s_t + 1 and nothing after a frame reaches it when the history holds k_t - 1
    frames. Products are summed in fp32 (fp64 for fp64 inputs) and rounded once.

    Args:
        x: New frames [B, I, T, H, W].
        history: Frames before them [B, I, t, H, W], t >= 0; None for none.
        weight: Taps [O, I, k_t, k_h, k_w], x's dtype.
        bias: [O], x's dtype; None for none.
        zero_frames: Zero frames in front of the history, fewer than k_t. Their taps may be skipped.
        stride: Steps in time, rows and columns.
        padding: Zero rows or columns at the top, bottom, left and right.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        A fresh tensor [B, O, T', H', W'] of x's dtype. All tensors are logically planar; memory
        that is channels_last_3d is fastest and then the result's format as well.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: CausalConv3d of the Wan2.1 VAE (Wan et al. 2025, arXiv 2503.20314).
    """
    assert 0 <= zero_frames < weight.shape[2], "zero frames that no output needs"
    run = resolve_call("causal_conv3d", backend, x.device, x.dtype, I=x.shape[1], O=weight.shape[0])
    return run(x, history, weight, bias, zero_frames=zero_frames, stride=stride, padding=padding)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """Representative cases: t history frames, I and O channels, k_t x k x k taps."""
    base = Case(op="causal_conv3d", device=device, dtype=dtype)
    same, last = (1, 1, 1, 1), {"padding": (1, 1, 1, 1), "channels_last": True}
    full = {"B": 1, "t": 2, "kt": 3, "k": 3}
    return (
        base.at("one", B=1, I=1, O=1, t=0, T=1, H=1, W=1, kt=1, k=1),
        base.at("pointwise", B=2, I=8, O=5, t=0, T=3, H=4, W=5, kt=1, k=1),
        base.at("history", I=16, O=16, T=4, H=9, W=7, **full, options={"padding": same}),
        base.at("channels_last", I=16, O=24, T=4, H=9, W=7, **full, options=last),
        base.at("wide", I=72, O=80, T=2, H=72, W=4, **full, options=last),
        base.at("one_frame", I=32, O=32, T=1, H=6, W=5, **full, options=last),
        base.at("few_in", I=3, O=16, T=4, H=8, W=6, **full, options=last),
        base.at("few_out", I=16, O=3, T=4, H=8, W=6, **full, options=last),
        base.at(
            "first", B=1, I=16, O=16, t=0, T=1, H=8, W=6, kt=3, k=3,
            options=last | {"zero_frames": 2},
        ),
        base.at(
            "zero_front", B=1, I=16, O=16, t=1, T=4, H=8, W=6, kt=3, k=3,
            options=last | {"zero_frames": 1},
        ),
        base.at(
            "wide_zero_front", B=1, I=64, O=64, t=1, T=4, H=56, W=3, kt=3, k=3,
            options=last | {"zero_frames": 1, "padding": (1, 0, 0, 1)},
        ),
        base.at(
            "halo", I=16, O=16, T=2, H=8, W=6, **full, options=last | {"padding": (0, 1, 1, 0)}
        ),
        base.at(
            "down", B=1, I=16, O=16, t=0, T=3, H=8, W=6, kt=1, k=3,
            options=last | {"padding": (0, 1, 0, 1), "stride": (1, 2, 2)},
        ),
        base.at(
            "time_down", B=1, I=16, O=16, t=1, T=4, H=4, W=5, kt=3, k=1,
            options={"stride": (2, 1, 1), "channels_last": True},
        ),
        base.at("mid_full", I=96, O=96, T=4, H=128, W=128, **full, options=last, large=True),
        base.at("mid_half", I=192, O=192, T=4, H=64, W=64, **full, options=last, large=True),
        base.at("mid_quarter", I=384, O=384, T=2, H=32, W=32, **full, options=last, large=True),
        base.at("mid_latent", I=384, O=384, T=1, H=16, W=16, **full, options=last, large=True),
        base.at("14b_full", I=96, O=96, T=4, H=768, W=448, **full, options=last, large=True),
        base.at("14b_half", I=192, O=192, T=4, H=384, W=224, **full, options=last, large=True),
    )  # fmt: skip


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Arguments of a call, in the memory format of the case; results are near unit scale."""
    d = case.dims
    fan_in = d["I"] * d["kt"] * d["k"] ** 2
    x = random_tensor(case, generator, d["B"], d["I"], d["T"], d["H"], d["W"])
    history = random_tensor(case, generator, d["B"], d["I"], d["t"], d["H"], d["W"])
    taps = (d["O"], d["I"], d["kt"], d["k"], d["k"])
    weight = random_tensor(case, generator, *taps, scale=fan_in**-0.5)
    bias = random_tensor(case, generator, d["O"], scale=0.2)
    if case.options.get("channels_last", False):
        x, history, weight = (
            tensor.contiguous(memory_format=torch.channels_last_3d)
            for tensor in (x, history, weight)
        )
    keywords = {
        key: case.options[key]
        for key in ("zero_frames", "stride", "padding")
        if key in case.options
    }
    return (x, history, weight, bias), keywords


def cost(case: Case) -> Cost:
    """A multiply-add per tap that meets a frame; taps on zero frames cost nothing."""
    d = case.dims
    zeros = case.options.get("zero_frames", 0)
    stride = case.options.get("stride", (1, 1, 1))
    top, bottom, left, right = case.options.get("padding", (0, 0, 0, 0))
    frames = (zeros + d["t"] + d["T"] - d["kt"]) // stride[0] + 1
    rows = (top + d["H"] + bottom - d["k"]) // stride[1] + 1
    columns = (left + d["W"] + right - d["k"]) // stride[2] + 1
    skipped = sum(max(0, zeros - frame * stride[0]) for frame in range(frames))
    taps = (frames * d["kt"] - skipped) * d["k"] ** 2
    pixels_in = d["B"] * (d["t"] + d["T"]) * d["H"] * d["W"]
    pixels_out = d["B"] * frames * rows * columns
    weights = prod((d["O"], d["I"], d["kt"], d["k"], d["k"])) + d["O"]
    elements = pixels_in * d["I"] + pixels_out * d["O"] + weights
    return Cost(
        flops=2 * d["B"] * rows * columns * taps * d["I"] * d["O"],
        bytes=elements * case.dtype.itemsize,
    )


OP = OpSpec(
    name="causal_conv3d",
    summary="causal video convolution with explicit history and padding",
    function=causal_conv3d,
    preference=("winograd", "library", "reference"),
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
)
