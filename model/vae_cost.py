"""Floating-point operations of the VAE, counted on the shapes that it really runs."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from livetalk_kernels import KernelConfig
from livetalk_kernels.ops import bind_ops

from .config import VAEConfig
from .vae import COLORS, SPATIAL, VAE, DecoderCache


def encode_flops(config: VAEConfig, *, frames: int, height: int, width: int, reuse: bool) -> int:
    """FLOPs to encode a video.

    Args:
        config: Widths.
        frames: Video frames, 1 + 4 * k.
        height: Pixels, a multiple of 8.
        width: Pixels, a multiple of 8.
        reuse: Schedule (see `VAE`).

    Returns:
        FLOPs of convolutions and attention; a multiply-add counts as two. Direct convolution is
        assumed, so an algorithm with fewer products runs above the rate that follows from this.
    """
    video = torch.empty(1, COLORS, frames, height, width, device="meta")
    return _count(config, reuse, lambda vae: vae.encode(video))


def decode_flops(
    config: VAEConfig, *, latents: int, height: int, width: int, reuse: bool, warmed: int = 0
) -> int:
    """FLOPs to decode latents.

    Args:
        config: Widths.
        latents: Latents to decode after the warmed ones.
        height: Pixels, a multiple of 8.
        width: Pixels, a multiple of 8.
        reuse: Schedule (see `VAE`).
        warmed: Latents in front of them that only warm the cache. Their FLOPs are counted too;
            the difference to ``latents=0`` is the rest.

    Returns:
        FLOPs as in `encode_flops`.
    """
    z = torch.empty(
        1, config.z_dim, warmed + latents, height // SPATIAL, width // SPATIAL, device="meta"
    )

    def work(vae: VAE) -> None:
        cache = DecoderCache()
        if warmed:
            vae.warm(z[:, :, :warmed], cache)
        for index in range(warmed, warmed + latents):
            vae.decode_step(z[:, :, index : index + 1], cache)

    return _count(config, reuse, work)


def _count(config: VAEConfig, reuse: bool, work: Callable[[VAE], object]) -> int:
    # The backend that skips zero frames, as what runs does.
    kernels = KernelConfig(backends={"causal_conv3d": "library"})
    ops = bind_ops(kernels, device="meta", dtype=torch.float32)
    with torch.device("meta"):
        vae = VAE(config, ops, reuse=reuse)
    vae.prepare()
    with FlopCounterMode(display=False) as counter:
        work(vae)
    return counter.get_total_flops()
