"""Constant weights of convolutions, kept only in the form that their backend multiplies by."""

import torch
from torch import Tensor

from livetalk_kernels.ops import Ops


def pack_weight(ops: Ops, weight_OIkkk: Tensor) -> tuple[Tensor, Tensor | None]:
    """A constant weight of a convolution as its backend wants it.

    Returns:
        The weight, and what the backend makes of it. Where it makes something, the first has the
        weight's shape only: one number in memory, which nobody reads.
    """
    packed = ops.pack("causal_conv3d", weight_OIkkk)
    if packed is None:
        return weight_OIkkk, None
    return weight_OIkkk.new_full((), torch.nan).expand(weight_OIkkk.shape), packed


def is_shape_only(weight: Tensor) -> bool:
    """Whether `pack_weight` has left nothing but the shape."""
    return not any(weight.stride())
