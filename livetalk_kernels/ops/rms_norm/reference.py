"""``rms_norm`` in plain PyTorch."""

from torch import Tensor
from torch.nn import functional

from ...precision import math_dtype
from ...spec import Case

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """See the contract."""
    wide = math_dtype(x.dtype)
    return functional.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(x.dtype)
