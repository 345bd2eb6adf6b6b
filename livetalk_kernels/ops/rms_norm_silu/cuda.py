"""``rms_norm_silu`` in CUDA: a pixel per part of a warp; see ``csrc/cuda/pixel_norm.cuh``.

Planar memory is converted to channels-last and back.
"""

import torch
from torch import Tensor

from ...backends.cuda import MAX_CHANNELS, supports_rows
from ...backends.operators import register_python
from ...spec import Case
from . import empty_outputs


def supports(case: Case) -> str | None:
    """Accept pixels of whole packs on a GPU."""
    reason = supports_rows(case, "C")
    limit = MAX_CHANNELS[case.dtype] if reason is None else 0
    if reason is None and case.dims.get("C", 0) > limit:
        return f"takes at most {limit} channels in this dtype, not {case.dims['C']}"
    return reason


def _run(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    pixels = x.permute(0, 2, 3, 4, 1).contiguous()
    rows = torch.ops.livetalk.rms_norm_silu_cuda_rows(pixels.flatten(0, 3), gamma, bias)
    out = rows.view(pixels.shape).permute(0, 4, 1, 2, 3)
    return out if out.stride() == x.stride() else empty_outputs(x, gamma).copy_(out)


run = register_python("rms_norm_silu", "cuda", _run, empty_outputs)
