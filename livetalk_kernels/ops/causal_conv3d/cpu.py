"""``causal_conv3d`` compiled: Winograd's algorithm where it is faster, else a direct kernel.

Winograd's F(2, 3) along time takes two outputs of a three-tap filter g from four inputs d with four
products instead of six::

    m0 = g0 * (d0 - d2)               m1 = (g0 + g1 + g2) / 2 * (d1 + d2)
    m2 = (g0 - g1 + g2) / 2 * (d2 - d1)               m3 = g2 * (d3 - d1)
    y0 = m0 + m1 + m2                 y1 = m1 - m2 + m3

F(4, 3) along rows and along columns takes four outputs with six products instead of twelve. A tile
of 2 x 4 x 4 outputs then takes 144 products of channels where the formula takes 864; one of 4 x 4
that see a single frame 36 instead of 144.

An identity, not an approximation; but sums of inputs and of taps are rounded too, so it is computed
in fp32 for bf16 as well. The direct kernel gathers pixels and multiplies them by the weight. On a
processor with AMX every bf16 convolution is multiplied in tiles instead, from a copy of the few
rows that fit its cache. All read the same packed weight, and read history, new frames and zeros in
place; nothing else is joined or padded. Few channels are left to ``library``.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308);
``csrc/cpu/conv3d_winograd.cpp``, ``csrc/cpu/conv3d_direct.cpp``, ``csrc/cpu/conv3d_tiles.cpp``.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from ...backends.cpu import DTYPES, missing, supports
from ...backends.operators import register_python
from ...spec import Case
from . import empty_outputs, library

__all__ = ["pack", "run", "supports", "workspace"]

MIN_CHANNELS = 16  # with fewer, channel vectors would be mostly empty
_LANES, _PANEL = 16, 32  # csrc/cpu/causal_conv3d.h: inputs and outputs packed together


def pack(weight: Tensor) -> Tensor | None:
    """Pack a weight for the compiled kernels, with its dtype and size (see `Ops.pack`).

    Args:
        weight: As in the contract.

    Returns:
        One dimension, in the kernels' own order, with inputs in multiples of 16 and outputs of 32;
        None for a weight that is left to ``library``.
    """
    if not _fits(weight):
        return None
    if weight.is_meta:
        outputs, inputs, *taps = weight.shape
        panels, lanes = -(-outputs // _PANEL) * _PANEL, -(-inputs // _LANES) * _LANES
        return weight.new_empty(prod(taps) * lanes * panels)
    return torch.ops.livetalk.causal_conv3d_pack.default(weight)


def _fits(weight: Tensor) -> bool:
    here = weight.is_cpu or weight.is_meta
    return here and min(weight.shape[:2]) >= MIN_CHANNELS and weight.dtype in DTYPES


def workspace(case: Case) -> int:
    """Count what the library allocates for few channels; the kernels here allocate nothing."""
    few = min(case.dims["I"], case.dims["O"]) < MIN_CHANNELS
    return library.workspace(case) if few else 0


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
    if not _fits(weight):
        return library.run(
            x, history, weight, bias, zero_frames=zero_frames, stride=stride, padding=padding
        )
    if packed is None:
        packed = torch.ops.livetalk.causal_conv3d_pack.default(weight)
    y_BTHWO = torch.ops.livetalk.causal_conv3d_packed.default(
        _channels_last(x), None if history is None else _channels_last(history), packed, bias,
        weight.shape[0], weight.shape[2:], zero_frames, stride, padding, "best",
    )  # fmt: skip
    y: Tensor = y_BTHWO.permute(0, 4, 1, 2, 3)
    planar = x.stride(1) != 1 and not x.is_contiguous(memory_format=torch.channels_last_3d)
    return y.contiguous() if planar else y


def _channels_last(x: Tensor) -> Tensor:
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


# An operator only where the compiled parts are: its absence is what `supports` reports.
_operator: Callable[..., Tensor] = _run
if missing() is None and hasattr(torch.ops.livetalk, "causal_conv3d_packed"):
    _operator = register_python("causal_conv3d", "cpu", _run, empty_outputs)
