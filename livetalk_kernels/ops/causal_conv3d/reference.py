"""``causal_conv3d`` in plain PyTorch: join, pad, convolve."""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import full_fp32
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """See the contract."""
    top, bottom, left, right = padding
    frames = x if history is None else torch.cat([history, x], dim=2)
    frames = functional.pad(frames, (left, right, top, bottom, zero_frames, 0))
    with full_fp32(x):
        return functional.conv3d(frames, weight, bias, stride)
