"""Muon: orthogonalises each matrix's momentum, so that all its directions are learned.

Sources: Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", for
the iteration and its factors; the step size is that of Moonshot AI 2025 (arXiv 2502.16982), similar
to AdamW's, so one learning rate serves both.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTUM = 0.95
_ROUNDS = 5
_FACTORS = 3.4445, -4.7750, 2.0315
_LIKE_ADAM = 0.2  # root mean square of AdamW's steps, relative to the learning rate
_NARROWEST = 4  # narrower matrices have hardly any directions
_NOTHING = 1e-12


class Muon(torch.optim.Optimizer):
    """Muon for matrices and kernels, [rows, the rest]; AdamW, without decay, for all other shapes.

    For parameters sharded among ranks, each rank gathers the matrix's gradient and orthogonalises
    all of it; momentum stays sharded.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """Take the parameters.

        Args:
            parameters: Parameters that learn.
            lr: Learning rate of both.
            betas: AdamW's betas.
            eps: AdamW's epsilon.
            weight_decay: Decay of matrices and kernels, relative to the learning rate.
        """
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step along the present gradients."""
        assert closure is None, "the loss is not computed again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim > 1 and min(parameter.flatten(1).shape) >= _NARROWEST:
                    _step_matrix(parameter, self.state[parameter], group)
                else:
                    _step_others(parameter, self.state[parameter], group)
        return None


def _step_matrix(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
    turned = _turned(gradient.lerp(momentum, _MOMENTUM))
    size = _LIKE_ADAM * max(parameter.flatten(1).shape) ** 0.5
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(turned, alpha=-group["lr"] * size)


def _turned(direction: Tensor) -> Tensor:
    """The direction made orthogonal; of one that is shared out, this rank's rows."""
    if not isinstance(direction, DTensor):
        return orthogonal(direction.flatten(1)).view(direction.shape)
    whole = _turned(direction.full_tensor())
    # All ranks have computed the same, so nothing is sent.
    return distribute_tensor(whole, direction.device_mesh, direction.placements, src_data_rank=None)


def _step_others(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    gradient = parameter.grad
    assert gradient is not None
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(gradient)
        state["exp_avg_sq"] = torch.zeros_like(gradient)
    first, second = group["betas"]
    count = float(state["step"].add_(1))
    mean = state["exp_avg"].lerp_(gradient, 1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (square / (1 - second**count)).sqrt_().add_(group["eps"])
    parameter.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**count))


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near one, between about 0.7 and 1.2.

    Args:
        matrix: float32 [rows, columns]; a zero matrix stays zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() + _NOTHING)
    a, b, c = _FACTORS
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
