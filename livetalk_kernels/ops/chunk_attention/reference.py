"""``chunk_attention`` in plain PyTorch."""

from torch import Tensor

from ...spec import Case
from .._attention import plain_attention

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    out_BLHd, lse_BHL = plain_attention(q_BLHd, k_BSHd, v_BSHd, scale)
    return out_BLHd.to(q_BLHd.dtype), lse_BHL
