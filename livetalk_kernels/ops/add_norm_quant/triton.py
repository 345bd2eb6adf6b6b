"""``add_norm_quant`` in Triton: one pass over memory, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register
from ...backends.triton_launch import supports_fp8 as supports
from .._rows import pair_rows, plan_rows
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import add_norm_quant_kernel

    x_new, q, scale = outputs
    if not x.numel():
        return []
    width = x.shape[-1]
    rows = x.numel() // width
    plan = pair_rows(plan_rows(rows, width, x.itemsize), rows)
    arguments = {
        "x": x, "y": y, "gate": gate, "weight": weight, "bias": bias, "x_new": x_new,
        "q": q, "scale": scale, "eps": eps, "rows": rows, "width": width, "GATED": gate is not None,
        **plan.constants, "INTERPRETED": interpreted(),
    }  # fmt: skip
    grid = (plan.programs,)
    launch = Launch(kernel=add_norm_quant_kernel, grid=grid, arguments=arguments, warps=plan.warps)
    return [launch]


run = register("add_norm_quant", empty_outputs, launches)
