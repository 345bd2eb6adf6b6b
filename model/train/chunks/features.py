"""Features: what the frozen networks compute from a clip.

A clip is split into chunks like a stream: each repeats the last five frames of the previous one,
and hears the last seconds up to its own end. Its portraits are frames that a chunk does not have:
the last one, which is in none, and the first one for all chunks but the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...avatar import before_grey
from ...config import CHUNK_FRAMES, NEW_FRAMES
from ...encoders.audio import AudioEncoder, AudioStream
from ...stream.chunk import from_uint8
from ...vae import SPATIAL, TEMPORAL, VAE
from ..data.clips import Clips
from ..faces.mouth import FPS, HOP
from ..vae.picture_losses import face_weight
from ..vae.whole import encode_whole

EncodeImage = Callable[[Tensor], Tensor]
"""Portrait [3, H, W] in -1..1 -> [1, image_len, image_dim]."""
FIRST, LAST = 0, 1
"""Which portrait: the clip's first or last frame."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """A clip of K chunks.

    Attributes:
        latents: [K, 16, 9, h, w].
        weight: [K, 1, 9, h, w] weight of each position, if the mouth counts more.
        windows: [K, 33, window, layers, channels] audio features.
        portraits: [2, 16, 9, h, w] latents of the `FIRST` and `LAST` frame, each before grey.
        images: [2, image_len, image_dim] their image features.
    """

    latents: Tensor
    weight: Tensor
    windows: Tensor
    portraits: Tensor
    images: Tensor


@torch.no_grad()
def compute_features(
    clips: Clips, clip: int, *, vae: VAE, encoder: AudioEncoder, encode_image: EncodeImage
) -> Features:
    """Compute the features of a clip, float32 on the CPU.

    Args:
        clips: The clips.
        clip: Which one.
        vae: Frozen.
        encoder: Frozen.
        encode_image: Encodes a portrait.
    """
    frames, sound, index = clips.frames(clip), clips.sound(clip), clips.index
    pixels = frames.permute(3, 0, 1, 2)[None].to(vae.conv1.weight.device)
    video = from_uint8(pixels, torch.float32)
    stream = AudioStream(encoder, fps=FPS, frames=CHUNK_FRAMES)
    weight = face_weight(clips.truth(clip)[None], index.truth, index.size)
    latents, weights, windows, heard = [], [], [], 0
    for start in range(0, len(frames) - CHUNK_FRAMES, NEW_FRAMES):
        end = start + CHUNK_FRAMES
        latents.append(encode_whole(vae, video[:, :, start:end])[0])
        weights.append(of_latents(weight[:, start:end]))
        windows.append(stream.push(sound[heard * HOP : end * HOP]))
        heard = end
    portraits = [video[:, :, :1], video[:, :, -1:]]
    return Features(
        latents=torch.stack(latents).cpu(),
        weight=torch.stack(weights),
        windows=torch.stack(windows).float().cpu(),
        portraits=torch.cat([encode_whole(vae, before_grey(one)) for one in portraits]).cpu(),
        images=torch.cat([encode_image(one[0, :, 0]) for one in portraits]).float().cpu(),
    )


def of_latents(values_BTHW: Tensor) -> Tensor:
    """Average over the pixels of each latent, [B, 1 + 4 k, H, W] -> [B, 1 + k, H/8, W/8]."""
    pooled = F.avg_pool2d(values_BTHW, SPATIAL)
    rest = pooled[:, 1:].unflatten(1, (-1, TEMPORAL)).mean(2)
    return torch.cat((pooled[:, :1], rest), dim=1)
