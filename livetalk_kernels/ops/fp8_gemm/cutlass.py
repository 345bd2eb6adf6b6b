"""``fp8_gemm`` on CUTLASS, with scales and bias in its epilogue; see ``csrc/cuda/sm90``."""

import torch
from torch import Tensor

from ...backends.cutlass import TMA_VALUES, compiled, supports_linear
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from . import empty_outputs

_run = compiled("fp8_gemm", empty_outputs)


def supports(case: Case) -> str | None:
    """Accept sizes that TMA can move, on a Hopper; scales per row and per block."""
    return supports_linear(case, TMA_VALUES)


def run(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """See the contract."""
    if scale_a.shape[-1] > 1:
        count_blocks(a_MK.shape[-1], FP8_BLOCK)  # rejects a row that they do not divide
    out: Tensor = _run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=out_dtype)
    return out
