"""Exports the trained audio encoder in the published layout, for ``generate --audio-encoder``."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from livetalk_kernels.outputs import new_file, write_json

from ...config import WAV2VEC2_KEYS
from ...encoders.wav2vec2 import Wav2Vec2
from ...weights.safetensors_file import TensorSpec, write_safetensors

Entry: TypeAlias = tuple[str, TensorSpec, Callable[[], Tensor]]

AUDIO_CONFIG = "config.json"
AUDIO_WEIGHTS = "model.safetensors"
AUDIO_PICKLE = "pytorch_model.bin"
"""The weights of published encoders that have no safetensors."""


def export_audio(network: Wav2Vec2, folder: Path) -> None:
    """Write the configuration and the weights, with the positional one split into v and g again.

    Args:
        network: Its weight norm is folded, as in running and training; it is not modified.
        folder: Target folder; files with these names are replaced.

    Raises:
        UserError: The folder cannot be written to.
    """
    split = copy.deepcopy(network)
    split.split_weight_norm()

    def entry(name: str, value: Tensor) -> Entry:
        return name, (tuple(value.shape), value.dtype), value.detach

    with new_file(folder / AUDIO_WEIGHTS) as file:
        write_safetensors(file, [entry(*item) for item in split.named_parameters()])
    shape = dataclasses.asdict(network.config)
    config = {key: shape[name] for name, key in WAV2VEC2_KEYS.items()}
    write_json(folder / AUDIO_CONFIG, {"model_type": "wav2vec2", **config})
