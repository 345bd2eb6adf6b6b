"""The ops of the model, one folder each, and ``bind_ops``, which picks a backend for each of them.

Folders in here are ops; files in an op's folder are its backends; nothing is registered by hand.
Backends for GPUs are untested on a GPU; those named ``cuda`` have run on a CPU, by emulation.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import KernelConfig
from ..dispatch import Choice, resolve, with_gradients
from ..registry import op_names
from ..spec import Case


class Ops:
    """All ops as plain callables, one attribute per op, each bound to one backend.

    ``ops.add_norm(x, y, gate, weight, bias)`` calls the backend itself; nothing is looked up.

    Attributes:
        choices: Op -> backend with the reason it was picked.
        differentiable: Whether all of them support autograd.
    """

    def __init__(self, choices: Mapping[str, Choice], *, differentiable: bool = False) -> None:
        """Create one attribute per op."""
        self.choices, self.differentiable = dict(choices), differentiable
        for op, choice in choices.items():
            setattr(self, op, choice.run)

    @property
    def chosen(self) -> dict[str, str]:
        """Op -> name of its backend."""
        return {op: choice.name for op, choice in self.choices.items()}

    def pack(self, op: str, weight: Tensor) -> Tensor | None:
        """Pack a constant weight for an op's backend, to be passed as ``packed``.

        Args:
            op: Name of an op with an argument ``packed``.
            weight: The op's argument, with its final values and device.

        Returns:
            A tensor for this backend only; None if it does not pack. Calls that receive it read
            the weight's shape and dtype, but none of its values.
        """
        return self.choices[op].pack(weight)

    if TYPE_CHECKING:

        def __getattr__(self, op: str) -> Callable[..., Any]: ...


def bind_ops(
    config: KernelConfig | None = None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    differentiable: bool = False,
    main: Mapping[str, int] | None = None,
    **dims: int,
) -> Ops:
    """Pick a backend for every op, once, when a model is built.

    Args:
        config: The user's choice; by default the environment's, else ``auto``.
        device: Device of the model.
        dtype: Dtype of the activations.
        differentiable: Bind only backends that support autograd, for training. Ops without one,
            those of FP8, are omitted.
        main: Sizes of the model's main part, if ``dims`` are another's: a named backend that can
            run only the main part leaves the other to ``auto``.
        **dims: Sizes known so far, by the ops' letters: ``D`` width, ``H`` heads, ``d`` channels
            per head, ``L`` tokens.

    Raises:
        UserError: A named backend cannot run, or lacks the gradients that are needed.
    """
    config = KernelConfig.from_sources() if config is None else config
    device = torch.device(device)
    cases = {op: Case(op=op, device=device, dtype=dtype, dims=dims) for op in op_names()}
    if differentiable:
        cases = {op: case for op, case in cases.items() if with_gradients(case)}
    mains = {} if main is None else {op: replace(case, dims=main) for op, case in cases.items()}
    choices = {
        op: resolve(case, config, differentiable=differentiable, main=mains.get(op))
        for op, case in cases.items()
    }
    return Ops(choices, differentiable=differentiable)
