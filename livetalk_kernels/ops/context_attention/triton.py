"""``context_attention`` in Triton: both softmaxes in one kernel, see ``_triton.py``."""

import dataclasses
import math

from torch import Tensor

from ...backends.triton_launch import Launch, register
from ...spec import Case
from .._attention_launch import LOG2_E, choose_blocks, key_arguments, strides
from .._attention_launch import supports as attention_supports
from . import empty_outputs

KEYS = 64  # the image's result stays in registers during the text, leaving fewer for scores


def supports(case: Case) -> str | None:
    """Check what every Triton attention kernel needs."""
    return attention_supports(case, KEYS)


def launches(
    outputs: tuple[Tensor, ...],
    q_BLHd: Tensor,
    k_image_BSHd: Tensor,
    v_image_BSHd: Tensor,
    k_text_BSHd: Tensor,
    v_text_BSHd: Tensor,
    *,
    text_repeats: int = 1,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import context_attention_kernel

    (out_BLHd,) = outputs
    B, L, H, d = q_BLHd.shape
    if not q_BLHd.numel():
        return []
    blocks = choose_blocks(q_BLHd.dtype, d)
    blocks = dataclasses.replace(blocks, keys=min(blocks.keys, KEYS))
    arguments = {
        "q": q_BLHd, "out": out_BLHd,
        "scale": d**-0.5 * LOG2_E, "bonus": math.log(text_repeats) * d**0.5 or None,
        "queries": L, "width": d,
        **strides("q", q_BLHd), **strides("out", out_BLHd),
        **key_arguments(k_image_BSHd, v_image_BSHd, blocks, suffix="_image"),
        **key_arguments(
            k_text_BSHd, v_text_BSHd, blocks, ragged=text_repeats > 1, suffix="_text"
        ),
        "ROWS": blocks.rows, "MAIN": blocks.main, "TAIL": blocks.tail,
    }  # fmt: skip
    return [
        Launch(
            kernel=context_attention_kernel,
            grid=(-(-L // blocks.rows), H, B),
            arguments=arguments,
            warps=blocks.warps,
            stages=blocks.stages,
        )
    ]


run = register("context_attention", empty_outputs, launches)
