"""The model that two CPU cores can train, and the default settings of its trainings."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.backends.cpu import product_dtype
from livetalk_kernels.ops import Ops

from ..config import AudioEncoderConfig, VAEConfig, get_preset
from ..encoders.wav2vec2 import Wav2Vec2
from ..vae import VAE
from ..weights.checkpoint import CheckpointFolder
from ..weights.fill import random_module
from .config import Distillation, Guidance, Teaching
from .settings import Run

Kind: TypeAlias = Literal["vae", "audio", "teacher", "distill"]

CPU = torch.device("cpu")
DEMO = get_preset("demo")
SETTINGS: Mapping[Kind, Mapping[str, Any]] = MappingProxyType(
    {
        "vae": {
            "steps": 5200, "batch": 1, "optimizer": "muon", "learning_rate": 8e-4,
            "warm_up": 0.05, "cool_down": 0.8, "average": 0.99,
        },
        "audio": {"steps": 1000, "batch": 4, "learning_rate": 1e-3, "average": 0.99},
        "teacher": {
            "steps": 3200, "batch": 8, "optimizer": "muon", "learning_rate": 2e-3,
            "warm_up": 0.05, "cool_down": 0.9, "average": 0.99,
            "teaching": Teaching(anchored=0.6, noised_motion=0.5, mouth=True),
        },
        "distill": {
            "steps": 300, "batch": 4, "learning_rate": 5e-5, "critic_rate": 1e-4, "average": 0.95,
            # With the published 4 faces were deformed at times.
            "distillation": Distillation(guidance=Guidance(audio=2.0, text=None)),
        },
    }
)  # fmt: skip
"""Defaults of small models' trainings."""
PAPER_STEPS: Mapping[Kind, int] = MappingProxyType({"teacher": 1000, "distill": 200})
"""The paper's updates. `Run` has its other settings."""


def default_run(kind: Kind, begins_as: Path | None = None) -> Run:
    """Return the default settings of a training.

    Args:
        kind: What is trained.
        begins_as: Folder of the transformer that it begins as, if there is one. With a text encoder
            it is a large model, published or trained from one, and the paper's settings apply.

    Raises:
        UserError: The folder is unusable.
    """
    if begins_as is not None and kind in PAPER_STEPS:
        own = CheckpointFolder(begins_as).own
        if own is None or not own.prompt_zeros:
            return Run(steps=PAPER_STEPS[kind])
    return Run(**SETTINGS[kind])


def training_ops(device: torch.device = CPU) -> Ops:
    """Bind ops with gradients."""
    return bind_ops(KernelConfig(), device=device, dtype=torch.float32, differentiable=True)


def training_dtype(device: torch.device = CPU) -> torch.dtype:
    """Return the dtype of training products: bf16 if the device multiplies it, else float32."""
    return product_dtype(device, torch.bfloat16)


def new_vae(seed: int, config: VAEConfig = DEMO.vae) -> VAE:
    """Create a frozen VAE with random weights, in the schedule with faster gradients on a CPU."""
    with torch.device("meta"):
        vae = VAE(config, training_ops(), reuse=False)
    _fill(vae, seed)
    vae.prepare()
    return vae


def new_audio_network(seed: int, config: AudioEncoderConfig = DEMO.audio) -> Wav2Vec2:
    """Create a frozen audio encoder with random weights; its weight norm is folded."""
    with torch.device("meta"):
        network = Wav2Vec2(config)
    _fill(network, seed)
    return network


def _fill(module: nn.Module, seed: int) -> None:
    random_module(module, seed=seed, dtype=torch.float32, device="cpu")
