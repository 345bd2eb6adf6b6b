"""Finds every op call that a model makes for a stream of one chunk, without its weights."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from livetalk_kernels.bench.tune import Call

from ..config import LATENT_FRAMES, Preset
from ..vae import SPATIAL
from . import recorder
from .record import (
    AUDIO_KV,
    DECODE,
    DENOISE,
    ENCODE,
    PREPARE,
    SECOND,
    WARM,
    record_transformer,
    record_vae,
)
from .work import NEW_LATENTS


def model_calls(
    preset: Preset,
    *,
    size: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    fuse_bias: bool = False,
    m_major_scales: bool = False,
    steps: int = 4,
) -> list[Call]:
    """List every op call for a stream of one chunk.

    Includes the start of a session and one chunk that is not its first: what a preset of this size
    does over and over.

    Args:
        preset: The model.
        size: Height and width of the picture in pixels.
        device: Device of the cases.
        dtype: Dtype of DiT and VAE.
        fp8: Whether the linear layers of the DiT's blocks are in FP8.
        fuse_bias: Whether the VAE's residual blocks add their biases in other passes.
        m_major_scales: Whether FP8 scales of neighbouring tokens' 1x128 blocks are contiguous.
        steps: Denoising steps per chunk.

    Returns:
        Distinct calls, with their number.
    """
    kind: dict[str, Any] = {"device": device.type, "dtype": dtype}
    latent, (_, rows, columns) = (size[0] // SPATIAL, size[1] // SPATIAL), preset.dit.patch_size
    grid = LATENT_FRAMES, latent[0] // rows, latent[1] // columns
    prompt = preset.dit.text_len // 2
    dit = record_transformer(
        preset.dit, grid, fp8=fp8, m_major_scales=m_major_scales, text_rows=prompt, **kind
    ).phases
    vae = record_vae(preset.vae, latent, fuse_bias=fuse_bias, **kind).phases
    parts = [(dit[PREPARE], 1), (dit[AUDIO_KV], 1), (dit[DENOISE], steps), (vae[WARM], 1)]
    parts += [(vae[SECOND], 1), (vae[DECODE], NEW_LATENTS - 1), (vae[ENCODE], 1)]
    counts: Counter[recorder.Call] = Counter()
    for phase, times in parts:
        for call, count in phase.calls.items():
            counts[call] += times * count
    return [
        Call(case=replace(call.case, device=device), count=count) for call, count in counts.items()
    ]
