"""Constant convolution weights, kept only in their backend's packed form."""

import torch
from torch import Tensor

from livetalk_kernels.ops import Ops


def pack_weight(ops: Ops, weight_OIkkk: Tensor) -> tuple[Tensor, Tensor | None]:
    """Convert a constant convolution weight to its backend's preferred form.

    Returns:
        The weight, and its packed form. If there is a packed form, the former has only the
        weight's shape: a single value in memory, which is never read.
    """
    packed = ops.pack("causal_conv3d", weight_OIkkk)
    if packed is None:
        return weight_OIkkk, None
    return weight_OIkkk.new_full((), torch.nan).expand(weight_OIkkk.shape), packed


def is_shape_only(weight: Tensor) -> bool:
    """Return whether `pack_weight` has left nothing but the shape."""
    return not any(weight.stride())
