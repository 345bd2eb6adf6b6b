"""``quantize`` in plain PyTorch."""

import torch
from torch import Tensor

from ...precision import FP8, FP8_MAX, math_dtype
from ...spec import Case
from . import count_blocks, laid_out


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(x: Tensor, *, block: int | None = None, m_major: bool = False) -> tuple[Tensor, Tensor]:
    """See the contract."""
    blocks = count_blocks(x.shape[-1], block)
    wide = x.to(math_dtype(x.dtype))
    wide = wide.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)
    peak = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros(*wide.shape[:-1], 1)
    # The smallest normal number keeps the scale of a denormal row from becoming zero.
    scale = (peak / FP8_MAX).float().clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.where(peak == 0, 1.0, scale)
    q = (wide / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return q.reshape(x.shape), laid_out(scale.squeeze(-1), m_major=m_major)
