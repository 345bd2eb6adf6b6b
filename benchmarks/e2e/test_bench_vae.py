"""Speed of the VAE in a stream: the motion frames encoded, one latent decoded."""

from collections.abc import Callable
from typing import Any

import torch
from probe import wait

from livetalk_model.config import MOTION_FRAMES
from livetalk_model.vae import SPATIAL, DecoderCache

LATENTS = 3
BOUND = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative L2; the order of sums differs


def draw(*shape: int) -> torch.Tensor:
    """Draw normal numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_encode(setup: Any, measure: Callable[..., None]) -> None:
    """Time encoding the last 5 frames of a chunk."""
    vae, device = setup.pipeline.vae, setup.source.device
    height, width = setup.avatar.size
    video = draw(1, 3, MOTION_FRAMES, height, width).clamp(-1, 1)
    video = video.to(device, setup.source.dtype)
    first, second = vae.encode(video), vae.encode(video)
    assert first.shape == (1, vae.config.z_dim, 2, height // SPATIAL, width // SPATIAL)
    assert first.isfinite().all() and first.std() > 0
    assert torch.equal(first, second), "two runs differ"

    def encode() -> None:
        vae.encode(video)
        wait(device)

    measure(encode, group="VAE")


@torch.inference_mode()
def test_decode_step(setup: Any, measure: Callable[..., None]) -> None:
    """Time decoding one latent, 4 frames, in the middle of a stream."""
    vae, device = setup.pipeline.vae, setup.source.device
    height, width = setup.avatar.size
    latents = draw(1, vae.config.z_dim, LATENTS, height // SPATIAL, width // SPATIAL)
    latents = latents.to(device, setup.source.dtype)
    pieces, cache = latents.split(1, dim=2), DecoderCache()
    frames = torch.cat([vae.decode_step(piece, cache) for piece in pieces], dim=2)
    whole = vae.decode(latents)
    assert frames.shape == (1, 3, 1 + 4 * (LATENTS - 1), height, width)
    assert frames.isfinite().all() and frames.std() > 0
    error = float((frames.float() - whole.float()).norm() / whole.float().norm())
    assert error <= BOUND[setup.source.dtype], f"step by step differs from the whole by {error:.1e}"

    def decode() -> None:
        vae.decode_step(pieces[-1], cache)
        wait(device)

    measure(decode, group="VAE")
