"""``chunk_attention`` on FP8 tensor cores, approximate; kernels in ``_triton_fp8.py``.

All operands of products are e4m3, and every product is summed in fp32:

* k minus its mean over this call's keys, with a scale per head and block of 128 keys. The mean
  shifts all scores of a query equally, so out is unaffected; ``q . mean`` is added to the LSE.
* q with a scale per row, quantised while it is loaded.
* v minus its mean over the keys, with a scale per head and channel. The weights sum to 1, so the
  mean is added to out.
* the weights, which are at most 1, times 256.

v is stored with keys along rows, as Hopper's FP8 instructions require. A call without keys is left
to the exact kernel.

Source: smoothing and the two levels of sums as in SageAttention, arXiv 2410.02367, and
SageAttention2, arXiv 2411.10958 (with q and k in INT8 or INT4); FP8 weights up to 2^8 and the
order of the keys in v as in FlashAttention-3, arXiv 2407.08608.
"""

import torch
from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register, supports_tma
from ...precision import FP8, FP8_BLOCK
from ...spec import Case
from .._attention_launch import LOG2_E, strides
from . import empty_outputs, triton

APPROXIMATE = True
MAX_WIDTH = 128  # channels per head; 256 would leave no registers for two-level sums
MIN_WIDTH = 32  # for an FP8 product
ROWS = 128  # queries per program: two groups of four warps have 64 each
STAGES = 3  # key blocks in flight
SHARED_MEMORY = 2 * STAGES * FP8_BLOCK * MAX_WIDTH + 1024  # bytes: keys and values, and some spare
STATISTICS_ROWS, COMBINE_ROWS = 16, 8  # rows that a warp loads at a time


def supports(case: Case) -> str | None:
    """Require what all Triton backends do, TMA and FP8, and heads of up to 128 channels."""
    return width_reason(case) or supports_tma(case, SHARED_MEMORY)


def width_reason(case: Case) -> str | None:
    """Return None for heads that are narrow enough or of unknown width, else the limit."""
    width = case.dims.get("d", MAX_WIDTH)
    if width <= MAX_WIDTH:
        return None
    return f"it has heads of up to {MAX_WIDTH} channels, not {width}"


def launches(
    outputs: tuple[Tensor, ...],
    q_BLHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    *,
    scale: float | None = None,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    B, L, H, d = q_BLHd.shape
    S = k_BSHd.shape[1]
    if not q_BLHd.numel() or not S:
        return triton.launches(outputs, q_BLHd, k_BSHd, v_BSHd, scale=scale)
    from triton.tools.tensor_descriptor import TensorDescriptor

    from ._triton_fp8 import (
        combine_kernel,
        fp8_attention_kernel,
        quantize_keys_kernel,
        statistics_kernel,
    )

    out_BLHd, lse_BHL = outputs
    scale = d**-0.5 if scale is None else scale
    width = max(MIN_WIDTH, 1 << (d - 1).bit_length())
    blocks = -(-S // FP8_BLOCK)
    partial = q_BLHd.new_empty((4, B * H, blocks, width), dtype=torch.float32)
    channels = q_BLHd.new_empty((3, B * H, width), dtype=torch.float32)
    k_scales = q_BLHd.new_empty((B * H, blocks), dtype=torch.float32)
    k_fp8 = q_BLHd.new_empty((B * H * blocks * FP8_BLOCK, width), dtype=FP8)
    v_fp8 = q_BLHd.new_empty((B * H * width, blocks * FP8_BLOCK), dtype=FP8)
    keys = {
        "k": k_BSHd, "v": v_BSHd, "keys": S, "width": d, "heads": H,
        **strides("k", k_BSHd), **strides("v", v_BSHd), "KEYS": FP8_BLOCK, "WIDTH": width,
    }  # fmt: skip
    statistics = {**keys, "partial": partial, "ROWS": STATISTICS_ROWS}
    combination = {
        "partial": partial, "channels": channels, "blocks": blocks,
        "ROWS": COMBINE_ROWS, "WIDTH": width,
    }  # fmt: skip
    quantisation = {
        **keys, "channels": channels, "k_fp8": k_fp8, "v_fp8": v_fp8, "k_scales": k_scales,
        "INTERPRETED": interpreted(),
    }  # fmt: skip
    attention = {
        "q": q_BLHd, "out": out_BLHd, "lse": lse_BHL, "k_scales": k_scales, "channels": channels,
        "k": TensorDescriptor.from_tensor(k_fp8, [FP8_BLOCK, width]),
        "v": TensorDescriptor.from_tensor(v_fp8, [width, FP8_BLOCK]),
        "scale": abs(scale) * LOG2_E, "queries": L, "keys": S, "width": d, "heads": H,
        **strides("q", q_BLHd), **strides("out", out_BLHd),
        "NEGATE": scale < 0, "ROWS": ROWS, "KEYS": FP8_BLOCK, "WIDTH": width,
        "WHOLE": S >= FP8_BLOCK, "EDGE": S % FP8_BLOCK > 0, "INTERPRETED": interpreted(),
    }  # fmt: skip
    grid = (blocks, H, B)
    return [
        Launch(kernel=statistics_kernel, grid=grid, arguments=statistics, warps=1),
        Launch(kernel=combine_kernel, grid=(B * H,), arguments=combination, warps=1),
        Launch(kernel=quantize_keys_kernel, grid=grid, arguments=quantisation, warps=8),
        Launch(
            kernel=fp8_attention_kernel,
            grid=(-(-L // ROWS), H, B),
            arguments=attention,
            warps=8,
            stages=STAGES,
        ),
    ]


run = register("chunk_attention", empty_outputs, launches, backend="triton_fp8")
