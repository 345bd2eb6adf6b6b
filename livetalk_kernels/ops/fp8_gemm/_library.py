"""What the FP8 linears by other people's kernels share: which scales they meet, and their operands.

Tensor-core libraries read FP8 by TMA, so rows and addresses are multiples of 16 bytes. Operands
that are none are copied with zeros at their ends, which add nothing; the model's never are.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...precision import FP8
from ...spec import Case

ALIGNMENT = 16  # bytes that rows and addresses must be multiples of, which is as many FP8 values
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of results


def may_have_blocks(case: Case) -> bool:
    """Whether activations may come with scales per 1x128 block.

    True if the case says so, and if it names no sizes, as when a model is built: between the
    layers of its feed-forward there are blocks.
    """
    return "K" not in case.dims or case.options.get("block") is not None


def trivial(
    a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None, out_dtype: torch.dtype
) -> Tensor | None:
    """The result where there is nothing to multiply, which not all kernels take; else None."""
    if a_MK.numel() and b_NK.numel():
        return None
    out = a_MK.new_zeros((a_MK.shape[0], b_NK.shape[0]), dtype=out_dtype)
    return out if bias_N is None else out.add_(bias_N)


def padded(x: Tensor, *multiples: int) -> Tensor:
    """A contiguous tensor that starts at a multiple of 16 bytes and whose sizes divide by so much.

    Itself, if it is one; else a copy with zeros at the ends.

    Args:
        x: Contiguous tensor.
        multiples: One number for each dimension.
    """
    ends = [-size % multiple for size, multiple in zip(x.shape, multiples, strict=True)]
    if not any(ends) and x.data_ptr() % ALIGNMENT == 0:
        return x
    values = x.view(torch.uint8) if x.dtype == FP8 else x  # torch fills no FP8; its zero is byte 0
    before_and_after = [width for end in reversed(ends) for width in (0, end)]
    return functional.pad(values, before_and_after).view(x.dtype)
