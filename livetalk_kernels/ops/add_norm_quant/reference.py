"""``add_norm_quant`` in plain PyTorch."""

from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case
from ..add_norm import reference as add_norm
from ..quantize import reference as quantize


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """See the contract."""
    wide = math_dtype(x.dtype)
    x_new = add_norm.add(x, y, gate)
    h = functional.layer_norm(x_new.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), eps)
    q, scale = quantize.run(h)
    return x_new, q, scale
