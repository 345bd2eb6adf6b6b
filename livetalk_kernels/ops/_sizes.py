"""Reads sizes of a case off the tensors of a call."""

import torch
from torch import Tensor


def row_sizes(x: Tensor) -> dict[str, int]:
    """Dims of rows [..., D]."""
    return {"B": 1, "L": x[..., 0].numel(), "D": x.shape[-1]}


def format_option(x: Tensor) -> dict[str, bool]:
    """Option of a video [B, C, T, H, W] that lies in channels-last order and in no other."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return {"channels_last": True} if last and not x.is_contiguous() else {}
