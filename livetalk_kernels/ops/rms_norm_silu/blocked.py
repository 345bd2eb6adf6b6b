"""``rms_norm_silu`` for channels-last memory on a CPU: PyTorch on blocks that stay in cache.

The four passes of the formula then read main memory once. In one pass over the whole tensor each
of them would, and on planar memory the norm over channels strides through it besides.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case
from . import reference

BLOCK_BYTES = 1 << 20  # of fp32 values: half the level-2 cache of one core, per core of two


def supports(case: Case) -> str | None:
    """CPUs only; another memory format than channels-last takes the plain formula."""
    if case.device.type != "cpu":
        return "blocks that fit a cache pay on CPUs only"
    return None


def run(x: Tensor, gamma: Tensor) -> Tensor:
    """See the contract."""
    x_BTHWC = x.permute(0, 2, 3, 4, 1)
    if not x_BTHWC.is_contiguous() or x.numel() == 0:
        return reference.run(x, gamma)
    wide = math_dtype(x.dtype)
    channels = x.shape[1]
    scale_C = gamma.to(wide) * channels**0.5
    out = torch.empty_like(x_BTHWC)
    rows = max(1, BLOCK_BYTES // (channels * wide.itemsize))
    blocks = zip(
        x_BTHWC.view(-1, channels).split(rows), out.view(-1, channels).split(rows), strict=True
    )
    for block, result in blocks:
        norm = torch.linalg.vector_norm(block, dim=1, keepdim=True, dtype=wide)
        factor = norm.clamp_(min=1e-12).reciprocal_()
        if x.dtype == wide:
            torch.mul(block, factor, out=result)
            functional.silu(result.mul_(scale_C), inplace=True)
        else:
            result.copy_(functional.silu((block * factor).mul_(scale_C), inplace=True))
    return out.permute(0, 4, 1, 2, 3)
