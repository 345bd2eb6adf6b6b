"""``add_norm`` in CUDA: a row in registers, packs of 16 bytes; see ``csrc/cuda/row_norm.cuh``.

Run on a CPU by emulation only; untested on a GPU.
"""

import torch
from torch import Tensor

from ...extension_cuda import register, supports_rows
from ...spec import Case
from . import empty_outputs

register("add_norm", empty_outputs)


def supports(case: Case) -> str | None:
    """Rows of whole packs on a GPU."""
    return supports_rows(case, "D")


def run(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    return torch.ops.livetalk.add_norm_cuda.default(x, y, gate, weight, bias, eps=eps)
