"""``chunk_attention`` with torch's plain products, the baseline of its fused kernels.

Slow, and close to ``reference``: the softmax and both products are torch's.
"""

from torch import Tensor

from ...spec import Case
from .._attention import sdpa_supports
from ._sdpa import attend, plain

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every float dtype on cpu and cuda."""
    return sdpa_supports(case)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return attend(plain, q_BLHd, k_BSHd, v_BSHd, scale)
