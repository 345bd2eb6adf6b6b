"""``rms_norm_rope`` in Triton: one pass over memory, kernel in ``_triton.py``."""

from torch import Tensor

from ...backends.triton_launch import Launch, register, split_width, supports
from .._rows import plan_rows, power_of_two
from . import empty_outputs

__all__ = ["launches", "run", "supports"]


def launches(
    outputs: tuple[Tensor, ...],
    q_BLD: Tensor,
    k_BLD: Tensor,
    weight_q_D: Tensor,
    weight_k_D: Tensor,
    cos_Sc: Tensor,
    sin_Sc: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    row_offset: int = 0,
    layout: str = "token",
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import rms_norm_rope_kernel

    assert layout in {"token", "head"}, layout
    B, L, D = q_BLD.shape
    assert row_offset + L <= cos_Sc.shape[0], "the RoPE table ends before the tokens do"
    if not q_BLD.numel():
        return []
    d = D // num_heads
    main, tail = split_width(num_heads)
    channels = power_of_two(d)
    plan = plan_rows(B * L, num_heads * channels, q_BLD.itemsize)
    out_row, out_head = (D, d) if layout == "token" else (d, B * L * d)
    arguments = {
        "q": q_BLD, "k": k_BLD, "weight_q": weight_q_D, "weight_k": weight_k_D,
        "q_out": outputs[0], "k_out": outputs[1],
        "cos": cos_Sc[row_offset:], "sin": sin_Sc[row_offset:],
        "eps": eps, "rows": B * L, "tokens": L, "heads": num_heads, "width": d,
        "q_stride_b": q_BLD.stride(0), "q_stride_l": q_BLD.stride(1),
        "k_stride_b": k_BLD.stride(0), "k_stride_l": k_BLD.stride(1),
        "out_row": out_row, "out_head": out_head,
        "ROWS": plan.constants["ROWS"], "MAIN": main, "TAIL": tail, "WIDTH": channels,
        "EVEN": main + tail == num_heads, "EXACT": channels == d,
    }  # fmt: skip
    grid = (plan.programs, 2)
    return [Launch(kernel=rms_norm_rope_kernel, grid=grid, arguments=arguments, warps=plan.warps)]


run = register("rms_norm_rope", empty_outputs, launches)
