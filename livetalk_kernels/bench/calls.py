"""Recovers the case of a recorded call: the inverse of the contracts' ``make_inputs``.

The case's inputs have the sizes, dtypes and memory formats of the call; the strides of rows that
are slices of a wider tensor are those of the contract's cases.
"""

from typing import Any

import torch

from ..registry import load_op
from ..spec import Case


def case_of(
    op: str, device: torch.device, dtype: torch.dtype, arguments: tuple[Any, ...], keywords: Any
) -> Case:
    """Return the case of a call.

    Args:
        op: Name of the op.
        device: Device of the case.
        dtype: Dtype of the activations.
        arguments: Positional arguments of the call, perhaps on ``meta``.
        keywords: Its other arguments.

    Returns:
        The case, named by its sizes.
    """
    dims, options = load_op(op).read(*arguments, **keywords)
    name = ",".join(f"{letter}={size}" for letter, size in dims.items())
    return Case(
        op=op, device=device, dtype=dtype, dims=dims, options=options, name=name, large=True
    )
