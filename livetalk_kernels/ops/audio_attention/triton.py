"""``audio_attention`` in Triton: one pass over queries and results, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, register
from .._attention_launch import LOG2_E, choose_blocks, key_blocks, strides, supports
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import audio_attention_kernel

    (out_BLHd,) = outputs
    B, L, H, d = q_BLHd.shape
    _, F, S, _, _ = k_BFSHd.shape
    assert token_offset + L <= F * tokens_per_frame, "tokens beyond the last audio frame"
    if not q_BLHd.numel():
        return []
    blocks = choose_blocks(q_BLHd.dtype, d)
    frames = (token_offset + L - 1) // tokens_per_frame - token_offset // tokens_per_frame + 1
    per_frame = -(-min(L, tokens_per_frame) // blocks.rows)
    arguments = {
        "q": q_BLHd, "k": k_BFSHd, "v": v_BFSHd, "out": out_BLHd,
        "scale": d**-0.5 * LOG2_E, "queries": L, "keys": S, "width": d,
        "tokens_per_frame": tokens_per_frame, "token_offset": token_offset, "blocks": per_frame,
        **strides("q", q_BLHd), **strides("out", out_BLHd),
        **strides("k", k_BFSHd), **strides("v", v_BFSHd),
        **key_blocks(S, blocks.keys), "ROWS": blocks.rows, "MAIN": blocks.main, "TAIL": blocks.tail,
    }  # fmt: skip
    return [
        Launch(
            kernel=audio_attention_kernel,
            grid=(H, frames * per_frame, B),
            arguments=arguments,
            warps=blocks.warps,
            stages=blocks.stages,
        )
    ]


run = register("audio_attention", empty_outputs, launches)
