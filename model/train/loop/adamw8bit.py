"""AdamW with 8-bit states in a quarter of the memory, from the optional library torchao.

torchao compiles its step; on a CPU the same step runs uncompiled. On a GPU it is untested.

Source: Dettmers et al. 2021 (arXiv 2110.02861): numbers in blocks of 256, each with its own scale,
on a grid that is finest around zero.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError

CODES, SCALES = "/codes", "/scales"
"""Suffixes of the two tensors that hold an 8-bit state in a checkpoint."""
_SIGNED = "exp_avg"  # the other state is of squares


def adamw8bit(
    parameters: Iterable[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Create the optimiser; states of fewer than 4096 numbers, or of partial blocks, stay 32-bit.

    Args:
        parameters: Parameters that learn.
        lr: Learning rate.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        weight_decay: Decay of all weights, relative to the learning rate.

    Raises:
        UserError: torchao is not installed.
    """
    base = _torchao().AdamW8bit
    parameters = list(parameters)

    # Ignored: the library is optional, so its class has no name that mypy could see.
    class Uncompiled(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Any = None) -> Any:
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    made: torch.optim.Optimizer = (Uncompiled if on_cpu else base)(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    return made


def take_apart(value: Tensor) -> dict[str, Tensor]:
    """Return the tensors that hold a state, by what is added to its name; a plain one itself."""
    state: Any = value
    if not hasattr(state, "codes"):
        return {"": value}
    return {CODES: state.codes, SCALES: state.scale}


def put_together(name: str, codes: Tensor, scales: Tensor) -> Tensor:
    """Make a state of what `take_apart` has returned.

    Args:
        name: Name of the state.
        codes: uint8, in the parameter's shape.
        scales: float32 [blocks].

    Raises:
        UserError: torchao is not installed.
    """
    block = codes.numel() // len(scales)
    state = _torchao().subclass_8bit.OptimState8bit.zeros(
        codes.shape, name == _SIGNED, block, codes.device, dtype=scales.dtype
    )
    state.codes.copy_(codes)
    state.scale.copy_(scales)
    made: Tensor = state
    return made


def _torchao() -> Any:
    try:
        from torchao import optim
    except ImportError:
        raise UserError(
            "optimizer = adamw8bit: needs torchao; pip install 'livetalk[train]', or use adamw"
        ) from None
    return optim
