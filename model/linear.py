"""Linear layers that a CPU without bf16 instructions computes in fp32 from weights kept in bf16."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.backends.cpu import product_dtype


class Linear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """Take over another layer's parameters."""
        with torch.device("meta"):
            own = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        own.weight, own.bias = layer.weight, layer.bias
        return own

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(input, self.weight, self.bias)


def take_over_linears(module: nn.Module) -> None:
    """Let all linear layers within a module that others wrote compute by `linear`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Linear.of(child))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x weight^T + bias, summed in fp32 or better and rounded once.

    Where the processor multiplies no bf16, PyTorch emulates it, slower than fp32. There the
    operands are widened, exactly, which costs one pass over the weight, and the product is fp32's
    own. The copy lives as long as the call.

    Args:
        x: [..., K], any floating dtype.
        weight: [N, K], x's dtype.
        bias: [N], x's dtype; None for none.

    Returns:
        [..., N], x's dtype.
    """
    wide = product_dtype(x.device, x.dtype)
    if wide == x.dtype:
        return F.linear(x, weight, bias)
    offset = None if bias is None else bias.to(wide)
    return F.linear(x.to(wide), weight.to(wide), offset).to(x.dtype)
