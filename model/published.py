"""What the published code repeats in every step and layer, for a fair comparison.

`livetalk ... --no-reuse` runs this schedule: the results agree with the default one up to
rounding, only the work differs.

Source: SoulX-FlashTalk, read at commit 688982e.
"""

import torch
from torch import Tensor

from livetalk_kernels.ops import Ops

from .rope import axis_widths, ladder


class PublishedRope:
    """RMS norm and rotation as published: separate norms, complex numbers in double precision.

    The token grid's table is reassembled on every call from three per-axis ladders.
    """

    def __init__(self, grid: tuple[int, int, int], head_dim: int, ops: Ops, device: torch.device):
        """Compute the per-axis ladders, complex128 [size, width] each, on ``device``."""
        self.grid = grid
        self.ops = ops
        self.axes = []
        for size, width in zip(grid, axis_widths(head_dim), strict=True):
            angle = torch.outer(torch.arange(size, dtype=torch.float64), ladder(width))
            self.axes.append(torch.polar(torch.ones_like(angle), angle).to(device))

    def __call__(
        self, q: Tensor, k: Tensor, weight_q: Tensor, weight_k: Tensor, num_heads: int, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate q and k, [B, L, D] each -> [B, L, H, d] each."""
        normed = self.ops.rms_norm(q, weight_q, eps=eps), self.ops.rms_norm(k, weight_k, eps=eps)
        q, k = (self._rotate(x.unflatten(-1, (num_heads, -1))) for x in normed)
        return q, k

    def _rotate(self, x_BLHd: Tensor) -> Tensor:
        parts = []
        for axis, values in enumerate(self.axes):
            shape = [1, 1, 1, values.shape[1]]
            shape[axis] = values.shape[0]
            parts.append(values.reshape(shape).expand(*self.grid, -1))
        table = torch.cat(parts, dim=-1).flatten(0, 2)[:, None]
        pairs = torch.view_as_complex(x_BLHd.double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * table).flatten(-2).to(x_BLHd.dtype)
