"""``causal_conv3d`` with 64 products of channels where the formula has 216, compiled.

Winograd's F(2, 3) along time, rows and columns: two outputs of a three-tap filter g over four
inputs d take four products instead of six::

    m0 = g0 * (d0 - d2)               m1 = (g0 + g1 + g2) / 2 * (d1 + d2)
    m2 = (g0 - g1 + g2) / 2 * (d2 - d1)               m3 = g2 * (d3 - d1)
    y0 = m0 + m1 + m2                 y1 = m1 - m2 + m3

An identity, not an approximation; but sums of inputs are rounded too, which only fp32 can afford.
History, new frames and zeros are read where they lie; nothing is joined or padded. What the
algorithm does not fit goes to ``library``: bf16, other kernels than 3x3x3, planar memory.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308);
``csrc/cpu/causal_conv3d.cpp``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...extension import missing, supports
from ...torch_ops import register_python
from . import empty_outputs, library

__all__ = ["pack", "run", "supports"]

MIN_CHANNELS = 16  # with fewer, the sums of inputs cost more than they save


def pack(weight: Tensor) -> Tensor | None:
    """What the compiled kernel multiplies by: fp32, 64 / 27 of the weight's size (see `Ops.pack`).

    Args:
        weight: As in the contract.

    Returns:
        One dimension, in the kernel's own order; None for a weight that goes to ``library``.
    """
    if not _fits(weight):
        return None
    return torch.ops.livetalk.causal_conv3d_pack.default(weight)


def _fits(weight: Tensor) -> bool:
    return (
        weight.is_cpu
        and weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
    )


def run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
) -> Tensor:
    """See the contract."""
    y: Tensor = _operator(
        x, history, weight, bias,
        packed=packed, zero_frames=zero_frames, stride=stride, padding=padding,
    )  # fmt: skip
    return y


def _run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    if history is not None and not history.shape[2]:
        history = None
    stored = 0 if history is None else history.shape[2]
    outputs = zero_frames + stored + x.shape[2] - weight.shape[2] + 1
    planar = x.stride(1) != 1 or (history is not None and history.stride(1) != 1)
    one_tap = zero_frames == 2 and outputs == 1  # the other two meet zeros only
    if not _fits(weight) or planar or one_tap or tuple(stride) != (1, 1, 1):
        return library.run(
            x, history, weight, bias, zero_frames=zero_frames, stride=stride, padding=padding
        )
    if packed is None:
        packed = torch.ops.livetalk.causal_conv3d_pack.default(weight)
    y_BTHWO = torch.ops.livetalk.causal_conv3d_winograd.default(
        x, history, packed, bias, weight.shape[0], zero_frames, padding
    )
    return y_BTHWO.permute(0, 4, 1, 2, 3)


# An operator only where the compiled parts are: its absence is what `supports` reports.
_operator: Callable[..., Tensor] = _run
if missing() is None and hasattr(torch.ops.livetalk, "causal_conv3d_winograd"):
    _operator = register_python("causal_conv3d", "cpu", _run, empty_outputs)
