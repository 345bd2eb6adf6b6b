"""``chunk_attention`` with torch's flash kernel, whatever else is available."""

from torch import Tensor

from ...spec import Case
from .._attention import sdpa_caution as caution
from .._attention import sdpa_supports
from ._library import gpu_supports
from ._sdpa import attend, flash

DIFFERENTIABLE = True
__all__ = ["caution", "run", "supports"]


def supports(case: Case) -> str | None:
    """Accept any float dtype on a CPU; on CUDA 16 bits and heads of up to 256 channels."""
    return gpu_supports(case) if case.device.type == "cuda" else sdpa_supports(case)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return attend(flash, q_BLHd, k_BSHd, v_BSHd, scale)
