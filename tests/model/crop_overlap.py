"""The published way to slice a VAE, as an oracle: overlapping tiles, each coded alone, cropped.

Every rank codes its slice with one latent, or eight pixels, of its neighbours on every side and
drops what belongs to them; convolutions and attention see nothing beyond the tile. Scheme (not
code) of ``encode_dist`` and ``decode_dist`` of LightX2V, which the published model uses.
"""

import torch
from torch import Tensor

from livetalk_kernels.runtime.slices import Box, Slices
from livetalk_model.vae import SPATIAL, VAE

OVERLAP = 1  # latents at each side; a tile at the edge has both at its one inner side


def tiles(slices: Slices, rank: int) -> tuple[Box, Box]:
    """A rank's slice of the latent, and the tile around it."""
    own = slices.box(rank)
    parts = []
    for part, length in zip(own, slices.size, strict=True):
        before = OVERLAP if part.stop < length else 2 * OVERLAP
        after = OVERLAP if part.start > 0 else 2 * OVERLAP
        parts.append(range(max(part.start - before, 0), min(part.stop + after, length)))
    return own, Box(*parts)


def scale(box: Box, factor: int) -> Box:
    rows, columns = (range(part.start * factor, part.stop * factor) for part in box)
    return Box(rows, columns)


def whole(slices: Slices) -> Box:
    return Box(range(slices.size[0]), range(slices.size[1]))


def decode_tiles(vae: VAE, z_BCTHW: Tensor, slices: Slices) -> Tensor:
    """Frames of all latents, not clamped."""
    size = [length * SPATIAL for length in slices.size]
    out = torch.empty(1, 3, 1 + 4 * (z_BCTHW.shape[2] - 1), *size)
    for rank in range(slices.grid.world):
        own, tile = tiles(slices, rank)
        frames = vae.decode(tile.view(z_BCTHW, whole(slices)), clamp=False)
        target = scale(own, SPATIAL).view(out, scale(whole(slices), SPATIAL))
        target.copy_(scale(own, SPATIAL).view(frames, scale(tile, SPATIAL)))
    return out


def encode_tiles(vae: VAE, video_BCTHW: Tensor, slices: Slices) -> Tensor:
    """Latents of a video."""
    out = torch.empty(1, vae.config.z_dim, 1 + (video_BCTHW.shape[2] - 1) // 4, *slices.size)
    for rank in range(slices.grid.world):
        own, tile = tiles(slices, rank)
        pixels = scale(tile, SPATIAL).view(video_BCTHW, scale(whole(slices), SPATIAL))
        own.view(out, whole(slices)).copy_(own.view(vae.encode(pixels), tile))
    return out
