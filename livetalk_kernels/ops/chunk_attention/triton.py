"""``chunk_attention`` in Triton: FlashAttention with TMA, kernel in ``_triton.py``."""

import torch
from torch import Tensor

from ...backends.triton_launch import Launch, register
from .._attention_launch import LOG2_E, choose_blocks, key_arguments, strides, supports
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    q_BLHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    *,
    scale: float | None = None,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import chunk_attention_kernel

    out_BLHd, lse_BHL = outputs
    B, L, H, d = q_BLHd.shape
    if not q_BLHd.numel():
        return []
    scale = d**-0.5 if scale is None else scale
    factor = max(abs(scale), torch.finfo(torch.float32).tiny)  # a masked -inf times 0 would be NaN
    blocks = choose_blocks(q_BLHd.dtype, d)
    arguments = {
        "q": q_BLHd, "out": out_BLHd, "lse": lse_BHL,
        "scale": factor * LOG2_E, "queries": L, "width": d, "heads": H,
        **strides("q", q_BLHd), **strides("out", out_BLHd),
        **key_arguments(k_BSHd, v_BSHd, blocks),
        "NEGATE": scale < 0, "ROWS": blocks.rows, "MAIN": blocks.main, "TAIL": blocks.tail,
    }  # fmt: skip
    return [
        Launch(
            kernel=chunk_attention_kernel,
            grid=(-(-L // blocks.rows), H, B),
            arguments=arguments,
            warps=blocks.warps,
            stages=blocks.stages,
        )
    ]


run = register("chunk_attention", empty_outputs, launches)
