"""``fp8_gemm`` with quack: a Hopper kernel in CuTe, with scales and bias in its epilogue.

Scales per row only; quack supports only blocks of 1x32, and not on a Hopper. The first call with a
shape compiles the kernel for several tile shapes and times them.

Source: the package quack-kernels, whose interface of version 0.6.5 is used.
"""

from typing import Any

import torch
from torch import Tensor

from ...backends.reasons import HOPPER, capability_reason, device_reason, dtype_reason
from ...errors import UserError
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from ._library import ALIGNMENT, DTYPES, may_have_blocks, padded, trivial


def supports(case: Case) -> str | None:
    """Require a Hopper or newer, scales per row only, and the library."""
    return reason_against(case, blocks=may_have_blocks(case))


def reason_against(case: Case, *, blocks: bool) -> str | None:
    """Return why quack cannot run a case, with scales per block or without; None if it can."""
    reason = device_reason(case.device, "cuda") or dtype_reason(case.dtype, DTYPES)
    if reason is not None:
        return reason
    if blocks:
        return "takes scales per row only, not per 1x128 block"
    return capability_reason(case, HOPPER) or case.libraries.problem("quack")


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
    refuse_blocks(a_MK, scale_a)
    if (out := trivial(a_MK, b_NK, bias_N, out_dtype)) is not None:
        return out
    from ._quack import scaled

    return product(scaled, a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype)


def refuse_blocks(a_MK: Tensor, scale_a: Tensor) -> None:
    """Raise UserError for scales per block, which a case without sizes may have hidden."""
    if scale_a.shape[-1] > 1:
        blocks = count_blocks(a_MK.shape[-1], FP8_BLOCK)
        raise UserError(
            f"quack takes one scale per row, not {blocks} blocks; choose --backend fp8_gemm=auto"
        )


def product(
    epilogue: Any,
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """Multiply with an epilogue of ``_quack``; no size may be 0."""
    N = b_NK.shape[0]
    bias = scale_b.new_zeros(N) if bias_N is None else bias_N
    outputs = epilogue(
        padded(a_MK, 1, ALIGNMENT),
        padded(b_NK, ALIGNMENT, ALIGNMENT).T,
        out_dtype=out_dtype,
        scale_a=padded(scale_a.flatten().contiguous(), 1),
        scale_b=padded(scale_b.flatten().contiguous(), ALIGNMENT),
        bias=padded(bias, ALIGNMENT),
    )
    return outputs["D"][:, :N].contiguous()
