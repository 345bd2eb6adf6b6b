"""``rms_norm`` in Triton: one pass over memory, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, register, supports
from .._rows import as_rows, plan_rows
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...], x: Tensor, weight: Tensor, *, eps: float = 1e-6
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import rms_norm_kernel

    if not x.numel():
        return []
    x = as_rows(x)
    rows, width = x.shape
    plan = plan_rows(rows, width, x.itemsize)
    arguments = {
        "x": x, "weight": weight, "out": outputs[0], "eps": eps,
        "rows": rows, "width": width, "stride": x.stride(0), **plan.constants,
    }  # fmt: skip
    grid = (plan.programs,)
    return [Launch(kernel=rms_norm_kernel, grid=grid, arguments=arguments, warps=plan.warps)]


run = register("rms_norm", empty_outputs, launches)
