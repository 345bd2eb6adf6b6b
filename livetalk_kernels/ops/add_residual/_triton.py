"""Triton kernel of ``add_residual``: one pass over channels-last memory."""

import triton
import triton.language as tl

from .._triton import load_columns


@triton.jit
def add_residual_kernel(
    x, y, bias, out, pixels,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Process PIXELS [CHANNELS] of x, y and out, in COUNT blocks; grid (pixels / PIXELS,)."""
    FULL: tl.constexpr = COUNT * BLOCK == CHANNELS
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = pixel < pixels
    if not FULL:
        mask &= channel < CHANNELS
    start = pixel * CHANNELS + channel
    for block in tl.static_range(COUNT):
        at = start + block * BLOCK
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
        value += load_columns(bias, channel + block * BLOCK, CHANNELS, FULL)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
