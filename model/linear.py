"""Linear layers that a CPU without bf16 instructions computes in fp32 from weights kept in bf16."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.extension import widens_bf16


class Linear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x weight^T + bias, summed in fp32 or better and rounded once.

    Where the processor multiplies no bf16, PyTorch emulates it: 7 to 10 times slower than fp32 on
    AVX2. There the operands are widened, exactly, which costs one pass over the weight, and the
    product is fp32's own. The copy lives as long as the call.

    Args:
        x: [..., K], any floating dtype.
        weight: [N, K], x's dtype.
        bias: [N], x's dtype; None for none.

    Returns:
        [..., N], x's dtype.
    """
    if x.dtype == torch.bfloat16 and x.is_cpu and widens_bf16():
        offset = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), offset).bfloat16()
    return F.linear(x, weight, bias)
