"""``rms_norm_silu`` in plain PyTorch."""

from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case


def supports(case: Case) -> str | None:
    """Runs everywhere."""
    return None


def run(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the contract."""
    wide = math_dtype(x.dtype)
    value = x.to(wide) if bias is None else x.to(wide) + bias.to(wide).view(-1, 1, 1, 1)
    unit = functional.normalize(value, dim=1, eps=1e-12)
    scaled = unit * x.shape[1] ** 0.5 * gamma.to(wide).view(-1, 1, 1, 1)
    return functional.silu(scaled).to(x.dtype)
