"""Shared by the compositions with third-party kernels."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ...dispatch import pick
from ...precision import FP8_BLOCK
from ...spec import Case


def gelu_quant(x_MN: Tensor, *, m_major: bool) -> tuple[Tensor, Tensor]:
    """Apply GELU(tanh) to an fp32 product and quantise it with a scale per 1x128 block."""
    out = functional.gelu(x_MN, approximate="tanh")
    return quantizer(x_MN.device)(out, block=FP8_BLOCK, m_major=m_major)


@functools.cache
def quantizer(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the best ``quantize`` for fp32 on a device."""
    case = Case(op="quantize", device=device, dtype=torch.float32)
    return pick(case, "auto", named=False).run
