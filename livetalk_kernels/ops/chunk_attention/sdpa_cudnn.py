"""``chunk_attention`` with cuDNN, through torch, whose own choice needs the same version."""

from torch import Tensor

from ...spec import Case
from ._library import aligned, gpu_supports
from ._sdpa import attend, cudnn

DIFFERENTIABLE = True
MAX_HEAD = 128  # channels; newer releases of cuDNN take 256 on some GPUs
MIN_VERSION = "9.15.1"


def supports(case: Case) -> str | None:
    """Require 16 bits on CUDA, heads of up to 128 channels, two keys or more."""
    reason = gpu_supports(case, max_head=MAX_HEAD)
    if reason is not None:
        return reason
    if case.dims.get("S") == 1:
        return "cuDNN takes no single key"
    return case.libraries.too_old("cudnn", MIN_VERSION)


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return attend(cudnn, aligned(q_BLHd), aligned(k_BSHd), aligned(v_BSHd), scale)
