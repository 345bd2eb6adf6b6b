"""Triton kernel of ``rms_norm_silu``: one pass, pixels stay in registers from load to store."""

import triton
import triton.language as tl

from .._triton import load_columns


@triton.jit
def square_sum(value):
    """Sum the squares over the channels [PIXELS, 1]."""
    return tl.sum(value * value, 1)[:, None]


@triton.jit
def sigmoid(value, INTERPRETED: tl.constexpr):
    """Compute 1 / (1 + e^-value) with two special-function instructions.

    Triton guards both against denormals, a third of this kernel's arithmetic; here a denormal is
    either far below the 1 that it is added to, or a result that rounds to 0 anyway.
    """
    if INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-value))
    else:
        return tl.inline_asm_elementwise(
            """
            {
                .reg .f32 e;
                mul.f32 e, $1, 0fBFB8AA3B;  // -1 / ln 2
                ex2.approx.ftz.f32 e, e;
                add.f32 e, e, 0f3F800000;
                rcp.approx.ftz.f32 $0, e;
            }
            """,
            "=f,f",
            [value],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def scale_silu(value, factor, gamma, out, mask, INTERPRETED: tl.constexpr):
    """Store SiLU(value * factor * gamma)."""
    value *= factor * tl.load(gamma).to(tl.float32)
    value *= sigmoid(value, INTERPRETED)
    tl.store(out, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def load_biased(x, bias, channel, mask, channels, FULL: tl.constexpr, BIASED: tl.constexpr):
    """Load [PIXELS, BLOCK] of x + bias as fp32; 0 in channels past the end."""
    value = tl.load(x, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        value += load_columns(bias, channel, channels, FULL)
    return value


@triton.jit
def rms_norm_silu_kernel(
    x, gamma, bias, out, root, pixels, tiles,
    CHANNELS: tl.constexpr, PLANAR: tl.constexpr, BIASED: tl.constexpr, PIXELS: tl.constexpr,
    BLOCK: tl.constexpr, COUNT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Process COUNT blocks of channels, 3 full or 1 with some to spare; ``root`` = sqrt(CHANNELS).

    Memory is [outer, CHANNELS, pixels] if PLANAR, else [outer, pixels, CHANNELS]; ``tiles`` of
    PIXELS in each outer part; grid (outer * tiles,).
    """
    tile = tl.program_id(0)
    outer = tile // tiles
    pixel = (tile - outer * tiles) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    mask = pixel < pixels
    FULL: tl.constexpr = COUNT * BLOCK == CHANNELS
    if not FULL:
        mask &= channel < CHANNELS
        gamma += tl.minimum(channel, CHANNELS - 1)
    else:
        gamma += channel
    start = outer.to(tl.int64) * CHANNELS * pixels
    if PLANAR:
        start += channel.to(tl.int64) * pixels + pixel
        step = tl.cast(pixels, tl.int64) * BLOCK
    else:
        start += pixel.to(tl.int64) * CHANNELS + channel
        step = BLOCK
    x += start
    out += start
    first = load_biased(x, bias, channel, mask, CHANNELS, FULL, BIASED)
    total = square_sum(first)
    if COUNT == 3:
        second = load_biased(x + step, bias, channel + BLOCK, mask, CHANNELS, FULL, BIASED)
        third = load_biased(x + 2 * step, bias, channel + 2 * BLOCK, mask, CHANNELS, FULL, BIASED)
        total += square_sum(second) + square_sum(third)
    norm = tl.sqrt(total)
    factor = root / tl.where(norm < 1e-12, 1e-12, norm)  # a maximum would drop NaN
    scale_silu(first, factor, gamma, out, mask, INTERPRETED)
    if COUNT == 3:
        scale_silu(second, factor, gamma + BLOCK, out + step, mask, INTERPRETED)
        scale_silu(third, factor, gamma + 2 * BLOCK, out + 2 * step, mask, INTERPRETED)
