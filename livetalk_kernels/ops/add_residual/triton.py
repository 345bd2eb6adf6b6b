"""``add_residual`` in Triton: one pass over memory, kernel in ``_triton.py``.

Memory that is not channels-last without gaps is copied first.
"""

import torch
from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register, supports
from .._rows import channel_blocks, interpreted_count
from . import empty_outputs

__all__ = ["launches", "run", "supports"]

ELEMENTS = 4096  # per program and block: in 16 bits, two packs of 16 bytes per thread


def launches(outputs: tuple[Tensor, ...], x: Tensor, y: Tensor, bias: Tensor) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import add_residual_kernel

    (out,) = outputs
    if not out.numel():
        return []
    channels = out.shape[1]
    pixels = out.numel() // channels
    x, y = (tensor.contiguous(memory_format=torch.channels_last_3d) for tensor in (x, y))
    count, block = channel_blocks(channels)
    tile = interpreted_count(pixels, block) if interpreted() else max(1, ELEMENTS // block)
    arguments = {
        "x": x, "y": y, "bias": bias, "out": out, "pixels": pixels, "CHANNELS": channels,
        "PIXELS": tile, "BLOCK": block, "COUNT": count,
    }  # fmt: skip
    return [Launch(kernel=add_residual_kernel, grid=(-(-pixels // tile),), arguments=arguments)]


run = register("add_residual", empty_outputs, launches)
