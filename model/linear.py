"""Linear layers that a CPU without bf16 instructions computes in fp32 from bf16 weights."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.backends.cpu import product_dtype


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
    The
    copy lives only during the call.

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
