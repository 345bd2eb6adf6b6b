"""``causal_conv3d``: convolution over video that never looks ahead, with an explicit history."""

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor

from ...call import resolve_call
from ...spec import Arguments, Bound, Case, Cost, OpSpec, Sizes, random_tensor
from .._sizes import format_option

Stride = tuple[int, int, int]
Padding = tuple[int, int, int, int]


def causal_conv3d(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
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
        packed: ``weight`` as packed by the same backend's ``pack``; the values of ``weight`` are
            then not read (see `Ops.pack`). None: not packed.
        zero_frames: Zero frames before the history, fewer than k_t. Their taps may be skipped.
        stride: Steps in time, rows and columns.
        padding: Zero rows or columns at the top, bottom, left and right.
        backend: Backend to use; by default the environment's choice, else the best that runs.

    Returns:
        A fresh tensor [B, O, T', H', W'] of x's dtype. All tensors are logically planar; memory
        that is channels_last_3d is fastest, and is then also the result's format.

    Raises:
        UserError: The backend does not exist or cannot run this case.

    Source: CausalConv3d of the Wan2.1 VAE (Wan et al. 2025, arXiv 2503.20314).
    """
    assert 0 <= zero_frames < weight.shape[2], "zero frames that no output needs"
    run = resolve_call("causal_conv3d", backend, x.device, x.dtype, I=x.shape[1], O=weight.shape[0])
    return run(
        x, history, weight, bias,
        packed=packed, zero_frames=zero_frames, stride=stride, padding=padding,
    )  # fmt: skip


def empty_outputs(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Allocate the output of a call; an operator's schema has no defaults for lists."""
    stored = 0 if history is None else history.shape[2]
    top, bottom, left, right = padding
    sizes = (
        zero_frames + stored + x.shape[2],
        top + x.shape[3] + bottom,
        left + x.shape[4] + right,
    )
    shape = (
        (size - taps) // step + 1
        for size, taps, step in zip(sizes, weight.shape[2:], stride, strict=True)
    )
    planar = not x.permute(0, 2, 3, 4, 1).is_contiguous()
    layout = torch.contiguous_format if planar else torch.channels_last_3d
    out = x.new_empty((x.shape[0], weight.shape[0], *shape))
    return out.contiguous(memory_format=layout)


def cases(device: torch.device, dtype: torch.dtype) -> tuple[Case, ...]:
    """List representative cases: t history frames, I and O channels, k_t x k x k taps."""
    last = {"channels_last": True}
    same = last | {"padding": (1, 1, 1, 1)}
    small: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        # name, (B, I, O, t, T, H, W, kt, k), options. Those with many channels are tall, so that
        # PyTorch uses oneDNN: its own loops for small tensors sum in smaller groups, with an
        # accuracy that no real size has.
        ("one", (1, 1, 1, 0, 1, 1, 1, 1, 1), {}),
        ("pointwise", (2, 8, 5, 0, 3, 4, 5, 1, 1), {}),
        ("history", (1, 16, 16, 2, 4, 9, 7, 3, 3), {"padding": (1, 1, 1, 1)}),
        ("channels_last", (1, 16, 24, 2, 4, 9, 7, 3, 3), same),
        ("wide", (1, 72, 80, 2, 2, 72, 4, 3, 3), same),
        ("wide_no_bias", (1, 72, 48, 2, 2, 72, 4, 3, 3), same | {"bias": False}),
        ("one_frame", (1, 96, 96, 2, 1, 72, 3, 3, 3), same),
        ("few_in", (1, 3, 16, 2, 4, 8, 6, 3, 3), same),
        ("few_out", (1, 16, 3, 2, 4, 8, 6, 3, 3), same),
        ("first", (1, 16, 16, 0, 1, 8, 6, 3, 3), same | {"zero_frames": 2}),
        ("zero_front", (1, 16, 16, 1, 4, 8, 6, 3, 3), same | {"zero_frames": 1}),
        ("wide_zero_front", (1, 64, 64, 1, 4, 56, 3, 3, 3), same | {"zero_frames": 1}),
        ("odd", (2, 72, 40, 2, 3, 23, 37, 3, 3), last | {"padding": (1, 1, 0, 1)}),
        ("halo", (1, 16, 16, 2, 2, 8, 6, 3, 3), last | {"padding": (0, 1, 1, 0)}),
        ("wide_halo", (1, 64, 64, 2, 4, 56, 4, 3, 3), last | {"padding": (1, 0, 0, 1)}),
        ("up", (1, 16, 32, 0, 2, 8, 6, 1, 2), same),
        (
            "down",
            (1, 16, 16, 0, 3, 8, 6, 1, 3),
            last | {"padding": (0, 1, 0, 1), "stride": (1, 2, 2)},
        ),
        ("time_down", (1, 16, 16, 1, 4, 4, 5, 3, 1), last | {"stride": (2, 1, 1)}),
    ]
    large: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("mid_full", (1, 96, 96, 2, 4, 128, 128, 3, 3), same),
        ("mid_half", (1, 192, 192, 2, 4, 64, 64, 3, 3), same),
        ("mid_quarter", (1, 384, 384, 2, 2, 32, 32, 3, 3), same),
        ("mid_latent", (1, 384, 384, 2, 1, 16, 16, 3, 3), same),
        ("mid_first", (1, 192, 192, 0, 1, 64, 64, 3, 3), same | {"zero_frames": 2}),
        ("mid_up", (1, 384, 768, 0, 4, 32, 32, 1, 2), same),
        ("mid_time_up", (1, 384, 768, 2, 2, 32, 32, 3, 1), last),
        (
            "mid_down",
            (1, 96, 96, 0, 4, 128, 128, 1, 3),
            last | {"padding": (0, 1, 0, 1), "stride": (1, 2, 2)},
        ),
        ("mid_shortcut", (1, 96, 192, 0, 4, 64, 64, 1, 1), last),
        ("mid_to_latent", (1, 384, 32, 1, 1, 16, 16, 3, 3), same | {"zero_frames": 1}),
        ("mid_to_rgb", (1, 96, 3, 2, 4, 128, 128, 3, 3), same),
        ("14b_full", (1, 96, 96, 2, 4, 768, 448, 3, 3), same),
        ("14b_half", (1, 192, 192, 2, 4, 384, 224, 3, 3), same),
    ]
    names = ("B", "I", "O", "t", "T", "H", "W", "kt", "k")
    base = Case(op="causal_conv3d", device=device, dtype=dtype)
    return tuple(
        replace(
            base, name=name, dims=dict(zip(names, sizes, strict=True)), options=options, large=big
        )
        for group, big in ((small, False), (large, True))
        for name, sizes, options in group
    )


def make_inputs(case: Case, generator: Generator) -> Arguments:
    """Make the arguments of a call, in the case's memory format; results are near unit scale."""
    d = case.dims
    fan_in = d["I"] * d["kt"] * d["k"] ** 2
    x = random_tensor(case, generator, d["B"], d["I"], d["T"], d["H"], d["W"])
    history = random_tensor(case, generator, d["B"], d["I"], d["t"], d["H"], d["W"])
    taps = (d["O"], d["I"], d["kt"], d["k"], d["k"])
    weight = random_tensor(case, generator, *taps, scale=fan_in**-0.5)
    bias = None
    if case.options.get("bias", True):
        bias = random_tensor(case, generator, d["O"], scale=0.2)
    if case.options.get("channels_last", False):
        x, history, weight = (
            tensor.contiguous(memory_format=torch.channels_last_3d)
            for tensor in (x, history, weight)
        )
    defaults = {"zero_frames": 0, "stride": (1, 1, 1), "padding": (0, 0, 0, 0)}
    keywords = {key: case.options.get(key, value) for key, value in defaults.items()}
    return (x, history, weight, bias), keywords


def cost(case: Case) -> Cost:
    """Count a multiply-add per tap on a frame; taps on zero frames cost nothing."""
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
    weights = prod((d["O"], d["I"], d["kt"], d["k"], d["k"]))
    weights += d["O"] * case.options.get("bias", True)
    elements = pixels_in * d["I"] + pixels_out * d["O"] + weights
    return Cost(
        flops=2 * d["B"] * rows * columns * taps * d["I"] * d["O"],
        bytes=elements * case.dtype.itemsize,
    )


def read(
    x: Tensor, history: Tensor | None, weight: Tensor, bias: Tensor | None, **options: Any
) -> Sizes:
    """Read a call's case: its dims and options."""
    B, I, T, H, W = x.shape  # noqa: E741
    O, _, kt, k, _ = weight.shape  # noqa: E741
    stored = 0 if history is None else history.shape[2]
    dims = {"B": B, "I": I, "O": O, "t": stored, "T": T, "H": H, "W": W, "kt": kt, "k": k}
    options = {name: value for name, value in options.items() if name != "packed"}
    options |= {"bias": False} if bias is None else {}
    return dims, options | format_option(x)


OP = OpSpec(
    name="causal_conv3d",
    summary="causal video convolution with explicit history and padding",
    kind="convolutions",
    function=causal_conv3d,
    preference={"cpu": ("cpu", "library"), "cuda": ("library",)},
    cases=cases,
    make_inputs=make_inputs,
    cost=cost,
    read=read,
    bounds=(Bound(factor=4.0),),  # Winograd's algorithm rounds more than the formula
)
