"""``rms_norm`` in CUDA: a row in registers, packs of 16 bytes; see ``csrc/cuda/row_norm.cuh``.

Run on a CPU by emulation only; untested on a GPU.
"""

import torch
from torch import Tensor

from ...extension_cuda import register, supports_rows
from ...spec import Case
from . import empty_outputs

register("rms_norm", empty_outputs)


def supports(case: Case) -> str | None:
    """Rows of whole packs on a GPU."""
    return supports_rows(case, "D")


def run(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """See the contract."""
    return torch.ops.livetalk.rms_norm_cuda.default(x, weight, eps=eps)
