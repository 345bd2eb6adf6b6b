"""Shared by the FP8 linears on third-party kernels: which scales occur, and operands.

Tensor-core libraries read FP8 with TMA, so rows and addresses must be multiples of 16 bytes. Other
operands are copied with trailing zeros, which add nothing; the model's never need that.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import FP8
from ...spec import Case

ALIGNMENT = 16  # bytes that rows and addresses must be multiples of, which is as many FP8 values
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of results


def may_have_blocks(case: Case) -> bool:
    """Return whether activations may have scales per 1x128 block.

    True if the case says so, and if it has no sizes, as when a model is built: blocks occur between
    the layers of its feed-forward.
    """
    return "K" not in case.dims or case.options.get("block") is not None


def trivial(
    a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None, out_dtype: torch.dtype
) -> Tensor | None:
    """Return the result if there is nothing to multiply, which some kernels reject; else None."""
    if a_MK.numel() and b_NK.numel():
        return None
    out = a_MK.new_zeros((a_MK.shape[0], b_NK.shape[0]), dtype=out_dtype)
    return out if bias_N is None else out.add_(bias_N)


def padded(x: Tensor, *multiples: int) -> Tensor:
    """Return a contiguous tensor aligned to 16 bytes whose sizes are multiples of ``multiples``.

    Returns x itself if possible; else a copy with trailing zeros.

    Args:
        x: Contiguous tensor.
        multiples: One number for each dimension.
    """
    ends = [-size % multiple for size, multiple in zip(x.shape, multiples, strict=True)]
    if not any(ends) and x.data_ptr() % ALIGNMENT == 0:
        return x
    # Torch cannot fill FP8, whose zero is byte 0.
    values = x.view(torch.uint8) if x.dtype == FP8 else x
    before_and_after = [width for end in reversed(ends) for width in (0, end)]
    return functional.pad(values, before_and_after).view(x.dtype)
