"""``quantize`` in Triton: one pass over memory, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register
from ...backends.triton_launch import supports_fp8 as supports
from .._rows import as_rows, plan_rows
from . import count_blocks, empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    x: Tensor,
    *,
    block: int | None = None,
    m_major: bool = False,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import quantize_kernel

    q, scale = outputs
    if not x.numel():
        # A row without values has scale 1.
        scale.fill_(1.0)
        return []
    x = as_rows(x)
    per_row = count_blocks(x.shape[1], block)
    width = x.shape[1] // per_row
    scale_rows = scale.view(-1, per_row)
    plan = plan_rows(x.shape[0] * per_row, width, x.itemsize)
    arguments = {
        "x": x, "q": q, "scale": scale, "parts": x.shape[0] * per_row, "width": width,
        "per_row": per_row, "stride": x.stride(0), "scale_row": scale_rows.stride(0),
        "scale_step": scale_rows.stride(1), **plan.constants, "INTERPRETED": interpreted(),
    }  # fmt: skip
    grid = (plan.programs,)
    return [Launch(kernel=quantize_kernel, grid=grid, arguments=arguments, warps=plan.warps)]


run = register("quantize", empty_outputs, launches)
