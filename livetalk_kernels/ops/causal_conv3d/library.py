"""``causal_conv3d`` on the convolution library under PyTorch (oneDNN, cuDNN), with less work.

Zero frames are not convolved: an output that would see them uses the remaining taps only.
Kernels of one frame run as 2-D convolutions over all frames at once. Symmetric padding is left to
the library. Kernels with few channels on one side fold time into them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...spec import Case

# oneDNN computes channels in groups of a vector register (16 fp32 values of AVX-512) and wastes
# the rest of it; three frames of at most five channels, folded into one, fill it better.
FEW_CHANNELS = 16


def supports(case: Case) -> str | None:
    """Runs wherever PyTorch convolves."""
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
    """See the contract."""
    frames = x if history is None or history.shape[2] == 0 else torch.cat([history, x], dim=2)
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        frames = functional.pad(frames, (left, right, top, bottom))
        top = left = 0
    taps, step = weight.shape[2], stride[0]
    outputs = (zero_frames + frames.shape[2] - taps) // step + 1
    parts: list[Tensor] = []
    start = -zero_frames  # first frame that the next output sees
    while start < 0 and len(parts) < outputs:
        window = frames[:, :, : start + taps]
        parts.append(_outputs(window, weight[:, :, -start:], bias, stride, (top, left)))
        start += step
    if len(parts) < outputs:
        parts.append(_outputs(frames[:, :, start:], weight, bias, stride, (top, left)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _outputs(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int, int],
    padding: tuple[int, int],
) -> Tensor:
    """All outputs that ``frames`` and symmetric padding of rows and columns give."""
    outputs, inputs, taps = weight.shape[:3]
    if taps == 1:
        return _per_frame(frames[:, :, :: stride[0]], weight[:, :, 0], bias, stride[1:], padding)
    if frames.is_cpu and stride[0] == 1:
        if inputs * taps <= FEW_CHANNELS:
            return _fold_inputs(frames, weight, bias, stride[1:], padding)
        # its partial sums are rounded before they are added up, hence not for bf16
        if outputs * taps <= FEW_CHANNELS and frames.dtype != torch.bfloat16:
            return _fold_outputs(frames, weight, bias, stride[1:], padding)
    return convolve(frames, weight, bias, stride, (0, *padding))


def convolve(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> Tensor:
    """The library's 2-D or 3-D convolution; ``stride`` and ``padding`` have as many entries."""
    if frames.is_cpu and frames.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # conv2d and conv3d leave small tensors to PyTorch's own loops, which are far slower than
        # oneDNN at the sizes of a narrow VAE (8 channels of 4 x 64 x 64)
        ones = (1,) * len(stride)
        return torch.mkldnn_convolution(frames, weight, bias, padding, stride, ones, 1)
    if len(stride) == 2:
        return functional.conv2d(frames, weight, bias, stride, padding)
    return functional.conv3d(frames, weight, bias, stride, padding)


def _per_frame(
    frames: Tensor,
    weight_OIkk: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, int],
) -> Tensor:
    """Convolve each frame as an image."""
    images = frames.transpose(1, 2).flatten(0, 1)
    out = convolve(images, weight_OIkk, bias, stride, padding)
    return out.unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def _fold_inputs(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, int],
) -> Tensor:
    """Few inputs: the frames that one output sees become channels of one image."""
    taps = weight.shape[2]
    count = frames.shape[2] - taps + 1
    stacked = torch.cat([frames[:, :, tap : tap + count] for tap in range(taps)], dim=1)
    flat = torch.cat(weight.unbind(2), dim=1)
    return _per_frame(stacked, flat, bias, stride, padding)


def _fold_outputs(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, int],
) -> Tensor:
    """Few outputs: every tap's part of an output is a channel of its own, added up afterwards."""
    taps, outputs = weight.shape[2], weight.shape[0]
    count = frames.shape[2] - taps + 1
    flat = torch.cat(weight.unbind(2), dim=0)
    parts = _per_frame(frames, flat, None, stride, padding).split(outputs, dim=1)
    total = (
        parts[0][:, :, :count] if bias is None else parts[0][:, :, :count] + bias.view(-1, 1, 1, 1)
    )
    for tap in range(1, taps):
        total = total + parts[tap][:, :, tap : tap + count]
    return total
