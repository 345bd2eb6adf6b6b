"""Rotary position tables of the DiT: 3-D over (frame, row, column), 1-D over a position.

A head's channels are adjacent pairs ``(2j, 2j+1)``, each rotated by an angle. Of the ``c = d/2``
pairs, the first ``c - 2 (c // 3)`` encode the latent frame, the next ``c // 3`` the row, the last
``c // 3`` the column; every axis has its own ladder ``theta ** (-j / width)``.

Source: Wan2.1 (arXiv 2503.20314), section 4; RoFormer (arXiv 2104.09864) for the rotation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

THETA = 10000.0


def ladder(width: int, device: torch.device | str = "cpu") -> Tensor:
    """Compute frequencies ``theta ** (-j / width)`` for j < width, float64 [width], radians."""
    steps = torch.arange(width, dtype=torch.float64, device=device)
    return THETA ** (-steps / width)


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Return how many channel pairs of a head encode the frame, the row and the column."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


@dataclass(frozen=True, kw_only=True)
class RopeTable:
    """Cosine and sine of every token's angles.

    Attributes:
        cos: float32 [T*h*w, head_dim/2], rows in token order: frame, then row, then column.
        sin: the same shape.
    """

    cos: Tensor
    sin: Tensor


def rope_table(
    grid: tuple[int, int, int], head_dim: int, device: torch.device | str = "cpu"
) -> RopeTable:
    """Compute the table for a token grid (frames, rows, columns), in float64 before rounding."""
    angles = []
    for axis, (size, width) in enumerate(zip(grid, axis_widths(head_dim), strict=True)):
        position = torch.arange(size, dtype=torch.float64, device=device)
        shape = [1, 1, 1, width]
        shape[axis] = size
        outer = torch.outer(position, ladder(width, device)).reshape(shape)
        angles.append(outer.expand(*grid, width))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return RopeTable(cos=table.cos().float(), sin=table.sin().float())


def rotate_1d(x_NHd: Tensor, position_N: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of every row by ``position * theta ** (-2j / d)``.

    Args:
        x_NHd: [N, H, d] rows, heads, channels; any float dtype.
        position_N: float32 [N], one position per row, unit: steps.

    Returns:
        [N, H, d] in x's dtype; the rotation is computed in float32.
    """
    pairs = x_NHd.shape[-1] // 2
    frequency = ladder(pairs, x_NHd.device).float()
    angle = position_N.float()[:, None, None] * frequency
    even, odd = x_NHd.float().unflatten(-1, (pairs, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x_NHd.dtype)
