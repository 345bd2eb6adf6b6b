"""Derives sizes of a case from the tensors of a call."""

import torch
from torch import Tensor


def row_sizes(x: Tensor) -> dict[str, int]:
    """Return the dims of rows [..., D]."""
    return {"B": 1, "L": x[..., 0].numel(), "D": x.shape[-1]}


def format_option(x: Tensor) -> dict[str, bool]:
    """Return the option of a video [B, C, T, H, W] that is channels-last and nothing else."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return {"channels_last": True} if last and not x.is_contiguous() else {}
