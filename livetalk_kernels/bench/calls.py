"""Which case a recorded call is: the other way round of the contracts' ``make_inputs``.

Sizes, dtypes and memory formats of the case's inputs are those of the call; how rows that are
slices of a wider tensor lie in memory is as the contract's cases have it.
"""

from typing import Any

import torch

from ..registry import load_op
from ..spec import Case


def case_of(
    op: str, device: torch.device, dtype: torch.dtype, arguments: tuple[Any, ...], keywords: Any
) -> Case:
    """The case of a call.

    Args:
        op: Name of the op.
        device: Where the case is to lie.
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
