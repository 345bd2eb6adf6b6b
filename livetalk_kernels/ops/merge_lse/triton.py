"""``merge_lse`` in Triton: one pass over memory, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register, supports
from .._rows import interpreted_count, power_of_two
from . import empty_outputs

__all__ = ["launches", "run", "supports"]

ELEMENTS = 8192  # per program; 64 rows of 128
HEADS = 8  # maximum; 8 heads of 128 are 2 KB of contiguous memory


def launches(
    outputs: tuple[Tensor, ...],
    out_a_BLHd: Tensor,
    lse_a_BHL: Tensor,
    out_b_BLHd: Tensor,
    lse_b_BHL: Tensor,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import merge_lse_kernel

    out, lse = outputs
    if not lse.numel():
        return []
    B, L, H, d = out_a_BLHd.shape
    heads = min(H & -H, HEADS)  # a power of two that divides H
    channels = power_of_two(d)
    if interpreted():
        tokens = interpreted_count(L, heads * channels)
    else:
        tokens = max(1, ELEMENTS // (heads * channels))
    arguments = {
        "out_a": out_a_BLHd, "lse_a": lse_a_BHL, "out_b": out_b_BLHd, "lse_b": lse_b_BHL,
        "out": out, "lse": lse, "tokens": L, "heads": H, "width": d,
        "TOKENS": tokens, "HEADS": heads, "WIDTH": channels, "EXACT": channels == d,
    }  # fmt: skip
    grid = (H // heads, -(-L // tokens), B)
    return [Launch(kernel=merge_lse_kernel, grid=grid, arguments=arguments, warps=8)]


run = register("merge_lse", empty_outputs, launches)
