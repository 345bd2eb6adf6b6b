"""The ops of the model, one folder each, and ``bind_ops``, which picks a backend for every one.

Folders in here are ops; files in an op's folder are its backends. Nothing is registered by hand.
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
        differentiable: Autograd goes through all of them.
    """

    def __init__(self, choices: Mapping[str, Choice], *, differentiable: bool = False) -> None:
        """Make one attribute per op."""
        self.choices, self.differentiable = dict(choices), differentiable
        for op, choice in choices.items():
            setattr(self, op, choice.run)

    @property
    def chosen(self) -> dict[str, str]:
        """Op -> name of its backend."""
        return {op: choice.name for op, choice in self.choices.items()}

    def pack(self, op: str, weight: Tensor) -> Tensor | None:
        """What an op's backend makes of a weight that stays as it is, to be passed as ``packed``.

        Args:
            op: Name of an op with an argument ``packed``.
            weight: As the op takes it, with its final values and device.

        Returns:
            A tensor for this backend alone; None where it makes nothing. A call that is given it
            reads the weight's shape and dtype, but none of its numbers.
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
        device: Where the model runs.
        dtype: Dtype of its activations.
        differentiable: Take only backends that autograd goes through, to train with. Ops that
            have none, those of FP8, are left out.
        main: Sizes of the model's main part, where these are of another: a named backend that can
            run the main part alone leaves the other to ``auto``.
        **dims: Sizes that are known by now, by the ops' letters: ``D`` width, ``H`` heads,
            ``d`` channels of a head, ``L`` tokens.

    Raises:
        UserError: A backend that was named cannot run, or has no gradients where they are needed.
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
