"""``rms_norm_silu`` in Triton: one pass over memory, kernel in ``_triton.py``.

Memory may be channels-last or planar, as the strides show.
"""

from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register, supports
from .._rows import channel_blocks, interpreted_count
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...], x: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import rms_norm_silu_kernel

    out = outputs[0]
    assert out.stride() == x.stride(), "rms_norm_silu needs memory without gaps"
    if not x.numel():
        return []
    channels = x.shape[1]
    # Dense memory is [outer, channels, inner], whatever the order of the other dimensions.
    inner = x.stride(1) if channels > 1 else 1
    outer = x.numel() // (channels * inner)
    planar = inner > 1
    outer, pixels = (outer, inner) if planar else (1, outer)
    count, block = channel_blocks(channels)
    elements = 4096 if planar or count == 1 else 2048  # per block
    tile = interpreted_count(pixels, block) if interpreted() else max(1, elements // block)
    tiles = -(-pixels // tile)
    arguments = {
        "x": x, "gamma": gamma, "bias": bias, "out": out, "root": channels**0.5,
        "pixels": pixels, "tiles": tiles, "CHANNELS": channels, "PLANAR": planar,
        "BIASED": bias is not None, "PIXELS": tile, "BLOCK": block, "COUNT": count,
        "INTERPRETED": interpreted(),
    }  # fmt: skip
    grid, warps = (outer * tiles,), 8 if planar else 4
    return [Launch(kernel=rms_norm_silu_kernel, grid=grid, arguments=arguments, warps=warps)]


run = register("rms_norm_silu", empty_outputs, launches)
