"""``causal_conv3d`` with a third fewer multiplications: Winograd's F(2, 3) along time.

Two outputs of a three-tap filter over four frames d take four products instead of six::

    m0 = g0 * (d0 - d2)               m1 = (g0 + g1 + g2) / 2 * (d1 + d2)
    m2 = (g0 - g1 + g2) / 2 * (d2 - d1)               m3 = g2 * (d1 - d3)
    y0 = m0 + m1 + m2                 y1 = m1 - m2 - m3

Here every product is a 2-D convolution of a whole frame, so that the transforms are sums of frames,
which cost little. An identity, not an approximation; but the sums of frames are rounded too, which
only dtypes with bits to spare can afford: fp32, not bf16.

Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308).
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...spec import Case
from . import library

MIN_PRODUCTS = 64 * 9  # per output value and frame: with fewer, the sums of frames cost too much


def supports(case: Case) -> str | None:
    """Fp32 and fp64 on a CPU, where convolutions are bound by arithmetic."""
    if case.device.type != "cpu":
        return "pays on CPUs only, where convolutions are bound by arithmetic"
    if case.dtype not in (torch.float32, torch.float64):
        return f"loses accuracy in {case.dtype}; use fp32"
    return None


def run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    zero_frames: int = 0,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """See the contract; what does not gain goes to ``library``, such as planar memory."""
    stored = 0 if history is None else history.shape[2]
    outputs, inputs, taps, height, width = weight.shape
    pairs, odd = divmod(zero_frames + stored + x.shape[2] - taps + 1, 2)
    few = min(inputs, outputs) * height * width < MIN_PRODUCTS
    planar = not x.permute(0, 2, 3, 4, 1).is_contiguous()
    if taps != 3 or stride != (1, 1, 1) or odd or pairs < 1 or zero_frames > 1 or few or planar:
        return library.run(
            x, history, weight, bias, zero_frames=zero_frames, stride=stride, padding=padding
        )
    frames = list(x.unbind(2))
    if history is not None:
        frames = [*history.unbind(2), *frames]
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):  # once per frame here, not once per product
        frames = [functional.pad(frame, (left, right, top, bottom)) for frame in frames]
        top = left = 0
    frames = [torch.zeros_like(frames[0])] * zero_frames + frames
    kernels = _transform(weight)
    rows = frames[0].shape[2] + 2 * top - height + 1
    columns = frames[0].shape[3] + 2 * left - width + 1
    out = x.new_empty(x.shape[0], 2 * pairs, rows, columns, outputs).permute(0, 4, 1, 2, 3)
    for start in range(0, 2 * pairs, 2):
        pair = (out[:, :, start], out[:, :, start + 1])
        _two_outputs(pair, frames[start : start + 4], kernels, bias, (top, left))
    return out


def _transform(weight: Tensor) -> list[Tensor]:
    """The four kernels [O, I, k, k] that sums of frames are convolved with."""
    first, middle, last = weight.unbind(2)
    outer, middle = (first + last) / 2, middle / 2
    return [first, outer + middle, outer - middle, last]


def _two_outputs(
    out: tuple[Tensor, Tensor],
    frames: list[Tensor],
    kernels: list[Tensor],
    bias: Tensor | None,
    padding: tuple[int, int],
) -> None:
    """Fill two neighbouring outputs [B, O, H, W] from the four frames [B, I, H, W] they see."""

    def product(index: int, image: Tensor, bias: Tensor | None = None) -> Tensor:
        return library.convolve(image, kernels[index], bias, (1, 1), padding)

    even, odd = out
    d0, d1, d2, d3 = frames
    both = product(1, d1 + d2, bias)
    change = product(2, d2 - d1)
    torch.add(both, change, out=even).add_(product(0, d0 - d2))
    torch.sub(both, change, out=odd).sub_(product(3, d1 - d3))
