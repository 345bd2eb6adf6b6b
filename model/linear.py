"""Linear layers: on a CPU by the faster library, in fp32 from bf16 weights if it lacks bf16."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.backends.cpu import prefers_onednn, product_dtype


class Linear(nn.Linear):
    """``nn.Linear`` that uses `linear`."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """Take over another layer's parameters."""
        with torch.device("meta"):
            own = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        own.weight, own.bias = layer.weight, layer.bias
        return own

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias)


def take_over_linears(module: nn.Module) -> None:
    """Let all linear layers within a module that others wrote compute by `linear`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Linear.of(child))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x weight^T + bias, summed in fp32 or better and rounded once.

    If the processor lacks bf16 multiplication, PyTorch emulates it, more slowly than fp32. Then the
    operands are widened, exactly, at the cost of one pass over the weight, and multiplied in fp32.
    The copy lives only during the call. fp32 is multiplied by oneDNN where that is faster.

    Args:
        x: [..., K], any floating dtype.
        weight: [N, K], x's dtype.
        bias: [N], x's dtype; None for none.

    Returns:
        [..., N], x's dtype.
    """
    wide = product_dtype(x.device, x.dtype)
    if wide == x.dtype:
        return _product(x, weight, bias)
    offset = None if bias is None else bias.to(wide)
    return _product(x.to(wide), weight.to(wide), offset).to(x.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _is_for_onednn(x, weight) and prefers_onednn():
        y: Tensor = _OneDnn.apply(x, weight, bias)
        return y
    return F.linear(x, weight, bias)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN may multiply: it takes ages for strided rows.

    torch.compile chooses a library itself.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return x.is_contiguous() and weight.is_contiguous()


class _OneDnn(torch.autograd.Function):
    """oneDNN's product, with the gradients that it lacks."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradients[0].reshape(-1, len(weight))
        return (
            (rows @ weight).view_as(x) if of_x else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
