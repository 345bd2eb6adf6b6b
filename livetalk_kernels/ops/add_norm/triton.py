"""``add_norm`` in Triton: one pass over memory, kernel in ``_triton.py``. Untested on a GPU."""

from torch import Tensor

from ...triton_launch import Launch, register, split_width, supports
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
    """What fills ``outputs``."""
    from ._triton import add_norm_kernel

    x_new, h = outputs
    width = x.shape[-1]
    if not x.numel():
        return []
    main, tail = split_width(width)
    arguments = {
        "x": x, "y": y, "gate": gate, "weight": weight, "bias": bias, "x_new": x_new, "h": h,
        "eps": eps, "width": width,
        "GATED": gate is not None, "MAIN": main, "TAIL": tail, "EVEN": main + tail == width,
    }  # fmt: skip
    warps = min(8, max(1, main // 256))
    grid = (x.numel() // width,)
    return [Launch(kernel=add_norm_kernel, grid=grid, arguments=arguments, warps=warps)]


run = register("add_norm", empty_outputs, launches)
