"""One optimiser step, and the exponential moving average of weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from livetalk_kernels.errors import NumericsError


def take_step(optimizer: torch.optim.Optimizer, *, max_norm: float = 1.0) -> float:
    """Take one step along the present gradients, clipped to a norm.

    Args:
        optimizer: Optimiser of all parameters that learn.
        max_norm: Maximum norm of the gradient.

    Returns:
        The norm before clipping.

    Raises:
        NumericsError: The gradient is not finite; no weight was changed.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = nn.utils.clip_grad_norm_(parameters, max_norm)
    norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
    if not norm < float("inf"):
        raise NumericsError("gradient", "NaN or Inf; take a smaller learning rate")
    optimizer.step()
    return norm


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale the learning rates relative to those that the optimiser was created with."""
    for group in optimizer.param_groups:
        rate = factor * group.setdefault("initial_lr", float(group["lr"]))
        if isinstance(group["lr"], Tensor):  # a compiled step reads it there
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Average:
    """Exponential moving average of a network's weights in float32.

    Attributes:
        decay: Fraction of the average that remains after an update.
        weights: Name -> averaged parameter.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start with the present weights."""
        self.decay = decay
        self.weights = {
            name: parameter.detach().float().clone() for name, parameter in learning(network)
        }

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update ``average <- decay average + (1 - decay) weights``."""
        for name, parameter in learning(network):
            self.weights[name].lerp_(parameter.detach().float(), 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Copy the average to a network with the same parameters."""
        for name, parameter in learning(network):
            parameter.copy_(self.weights[name])


def learning(network: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """List the parameters that learn, by name."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)
