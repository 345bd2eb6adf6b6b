"""Counts the parameters of the whole model, and those that a session holds.

DiT, VAE and audio encoder stay loaded; text and image encoder make avatars and are freed before a
session starts. The sizes of the latter two, and of the audio encoder's file, are those of the
published checkpoints (umT5-XXL, CLIP ViT-H/14 with its XLM-RoBERTa tower, wav2vec2-base).
"""

from dataclasses import dataclass

import torch
from torch import nn

from livetalk_kernels import KernelConfig, bind_ops

from ..config import AudioEncoderConfig, DiTConfig, VAEConfig
from ..dit import DiT
from ..dry_run.record import AUDIO, record_audio
from ..vae import VAE

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Part:
    """Parameters of a part of the model.

    Attributes:
        count: Number in its checkpoint.
        resident: Number that stays in memory during a session.
        note: What the others are.
    """

    count: int
    resident: int
    note: str = ""


def parameters(dit: DiTConfig, vae: VAEConfig, audio: AudioEncoderConfig) -> dict[str, Part]:
    """Map each part of the model to its parameters."""
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32)  # for shapes only
    with torch.device("meta"):
        transformer, codec = _count(DiT(dit, ops)), _count(VAE(vae, ops))
    heard = record_audio(audio, "cpu").weights[AUDIO] // FP32
    unused = audio.width + audio.pos_conv_kernel  # training's mask, and folded magnitudes
    return {
        "DiT": Part(count=transformer, resident=transformer),
        "VAE": Part(count=codec, resident=codec),
        "audio encoder": Part(
            count=heard + unused, resident=heard, note="mask of training, folded weight norm"
        ),
        "text encoder": Part(count=_umt5_xxl(), resident=0, note="makes avatars only"),
        "image encoder": Part(
            count=_clip_vision() + _clip_text() + 1,
            resident=0,
            note="makes avatars only, and of the file only its vision tower",
        ),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _umt5_xxl(
    dim: int = 4096, ffn: int = 10240, layers: int = 24, heads: int = 64, vocabulary: int = 256384
) -> int:
    buckets = 32  # relative positions, in every layer
    return (
        vocabulary * dim + layers * (2 * dim + 4 * dim**2 + 3 * dim * ffn + buckets * heads) + dim
    )


def _block(dim: int, ffn: int) -> int:
    """Count attention, feed-forward and two norms, all with biases."""
    return 4 * (dim**2 + dim) + 2 * dim * ffn + ffn + dim + 4 * dim


def _clip_vision(dim: int = 1280, layers: int = 32, patch: int = 14, out: int = 1024) -> int:
    embedding = 3 * patch**2 * dim + dim + 257 * dim  # patches, class token, positions
    return embedding + layers * _block(dim, 4 * dim) + 4 * dim + dim * out


def _clip_text(dim: int = 1024, layers: int = 24) -> int:
    embedding = (250002 + 514 + 1) * dim + 2 * dim  # tokens, positions, type, norm
    return embedding + layers * _block(dim, 4 * dim) + 2 * dim**2
