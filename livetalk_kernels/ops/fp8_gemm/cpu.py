"""``fp8_gemm`` compiled; see ``csrc/cpu/fp8_gemm.cpp``."""

import torch
from torch import Tensor

from ...backends.cpu import compiled, supports
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from . import empty_outputs

__all__ = ["run", "supports", "workspace"]

_ROWS, _GROUP = 1024, 16  # csrc/bindings/fp8_gemm_cpu.cpp, csrc/cpu/fp8_gemm.h

_run = compiled("fp8_gemm", empty_outputs)


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


def workspace(case: Case) -> int:
    """Count the bytes of the rows that are multiplied at a time, in fp32."""
    rows, depth = case.dims["M"], case.dims["K"]
    if not rows:
        return 0
    together = -(-rows // -(-rows // _ROWS))
    return 4 * -(-together // _GROUP) * _GROUP * (depth + depth % 2)
