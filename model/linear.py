"""Linear layers: on a CPU by the faster library, in fp32 from bf16 weights if it lacks bf16."""

from typing import Self

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
    The copy lives only during the call. fp32 is multiplied by oneDNN where that is faster, unless a
    gradient is needed.

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
    if _is_for_onednn(x, weight, bias) and prefers_onednn():
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def _is_for_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN may multiply: it has no gradients, and takes ages for strided rows.

    torch.compile chooses a library itself.
    """
    if torch.compiler.is_compiling():
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    dense = x.is_contiguous() and weight.is_contiguous()
    return x.is_cpu and x.dtype == torch.float32 and dense and not differentiable
