"""``rms_norm_silu`` in plain PyTorch."""

from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case


def supports(case: Case) -> str | None:
    """Runs everywhere."""
    return None


def run(x: Tensor, gamma: Tensor) -> Tensor:
    """See the contract."""
    wide = math_dtype(x.dtype)
    unit = functional.normalize(x.to(wide), dim=1, eps=1e-12)
    scaled = unit * x.shape[1] ** 0.5 * gamma.to(wide).view(-1, 1, 1, 1)
    return functional.silu(scaled).to(x.dtype)
