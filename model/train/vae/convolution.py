"""Convolutions of training; in float32 on a CPU with gradients of their own, ten times faster.

PyTorch computes both float32 gradients of a 3D convolution with few channels in its own loops. The
gradient of the input is a convolution again, and that of the weight a matrix product for each row
of taps.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUT = torch.channels_last_3d
ONCE = (1, 1, 1)
Padding: TypeAlias = tuple[int, int, int]
Stride: TypeAlias = tuple[int, int, int]


def convolve(x_BCTHW: Tensor, weight: Tensor, bias: Tensor, padding: Padding) -> Tensor:
    """Convolve with stride 1 on a CPU, with gradients.

    Args:
        x_BCTHW: Float32, channels_last_3d.
        weight: [O, C, kt, kh, kw].
        bias: [O].
        padding: Zeros on both sides of time, rows and columns; less than the kernel's size.

    Returns:
        [B, O, T', H', W'], channels_last_3d.
    """
    result = _Convolution.apply(x_BCTHW, weight, bias, padding)
    assert isinstance(result, Tensor)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCTHW: Tensor, weight: Tensor, bias: Tensor, padding: Padding
    ) -> Tensor:
        ctx.save_for_backward(x_BCTHW, weight)
        ctx.padding = padding
        return run(x_BCTHW, weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BCTHW, weight = ctx.saved_tensors
        dy_BOTHW = gradients[0].contiguous(memory_format=LAYOUT)
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        dx = dw = db = None
        if need_x:
            taps = weight.transpose(0, 1).flip(2, 3, 4)
            behind = tuple(k - 1 - p for k, p in zip(weight.shape[2:], ctx.padding, strict=True))
            dx = run(dy_BOTHW, taps, None, behind)
        if need_weight:
            dw = weight_gradient(x_BCTHW, dy_BOTHW, weight.shape[2:], ctx.padding)
        if need_bias:
            db = dy_BOTHW.sum((0, 2, 3, 4))
        return dx, dw, db, None


def weight_gradient(
    x_BCTHW: Tensor, dy_BOTHW: Tensor, taps: torch.Size, padding: Padding
) -> Tensor:
    """Sum dy[o, p] x[c, p + tap] over all pixels p.

    x is copied once per column of taps. Pixels are then rows of a matrix, and another row of taps
    is a fixed offset in it; zero rows after each picture keep the sums from running into the next
    one.

    Args:
        x_BCTHW: Input of the convolution.
        dy_BOTHW: Gradient of the result.
        taps: (kt, kh, kw).
        padding: Zeros around x.

    Returns:
        [O, C, kt, kh, kw].
    """
    (kt, kh, kw), (pt, ph, pw) = taps, padding
    batch, channels = x_BCTHW.shape[:2]
    outputs, (frames, rows, columns) = dy_BOTHW.shape[1], dy_BOTHW.shape[2:]
    tall, high = frames + kt - 1, rows + kh - 1
    x_BTHWC = F.pad(x_BCTHW, (pw, pw, ph, ph, pt, pt)).permute(0, 2, 3, 4, 1)
    wide = x_BTHWC.unfold(3, columns, 1).permute(0, 1, 2, 5, 3, 4)  # [B, T, H, W', kw, C]
    pixels = wide.reshape(-1, kw * channels)
    padded = dy_BOTHW.new_zeros(batch, tall, high, columns, outputs)
    padded[:, :frames, :rows] = dy_BOTHW.permute(0, 2, 3, 4, 1)
    count = len(pixels) - ((kt - 1) * high + kh - 1) * columns
    dy_ON = padded.view(-1, outputs)[:count].T
    result = dy_BOTHW.new_empty(kt, kh, outputs, kw * channels)
    for time in range(kt):
        for row in range(kh):
            first = (time * high + row) * columns
            torch.mm(dy_ON, pixels[first : first + count], out=result[time, row])
    return result.unflatten(3, (kw, channels)).permute(2, 4, 0, 1, 3)


def run(
    x_BCTHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Padding,
    stride: Stride = ONCE,
) -> Tensor:
    """Convolve in channels-last memory, with PyTorch's gradients.

    Args:
        x_BCTHW: Any floating dtype.
        weight: [O, C, kt, kh, kw], x's dtype.
        bias: [O], x's dtype; None: zeros.
        padding: Zeros on both sides of time, rows and columns.
        stride: In time, rows and columns.

    Returns:
        [B, O, T', H', W'], channels_last_3d.
    """
    x, weight = x_BCTHW.contiguous(memory_format=LAYOUT), weight.contiguous(memory_format=LAYOUT)
    onednn = x.device.type == "cpu" and x.dtype != torch.float64
    if not onednn or not torch.backends.mkldnn.is_available():
        return F.conv3d(x, weight, bias, stride, padding)
    # conv3d leaves small tensors to PyTorch's own loops, which are far slower.
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, ONCE, 1)
