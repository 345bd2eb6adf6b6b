"""Prompt embeddings and image features: from a checkpoint's encoders, or what replaces them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from livetalk_kernels.inputs import find, is_file, is_folder

from ..config import DiTConfig
from ..own import OwnModel
from ..weights.checkpoint import (
    IMAGE_ENCODER_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER_FOLDER,
    CheckpointFolder,
)
from ..weights.random_weights import RANDOM_SEED
from .image import ImageEncoder, RandomImageEncoder
from .text import RandomTextEncoder, TextEncoder


class ConditionEncoders:
    """Loads what encodes a model's prompts and portraits.

    Zeros replace encoders that a self-trained model declares it lacks; of a model without a
    checkpoint they are random.
    """

    def __init__(
        self,
        config: DiTConfig,
        checkpoint: CheckpointFolder | None,
        own: OwnModel | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Read nothing yet.

        Args:
            config: Shape of the transformer.
            checkpoint: Folder with the encoders; None for random ones.
            own: What a self-trained model declares; None for a published one.
            device: Device to run on.
            dtype: Dtype of the text encoder.
        """
        self._config, self._checkpoint = config, checkpoint
        self._prompt_zeros = 0 if own is None else own.prompt_zeros
        self._image_zeros = own is not None and own.image_zeros
        self._device, self._dtype = device, dtype

    @property
    def wordless(self) -> bool:
        """Whether zeros replace the prompt."""
        return self._prompt_zeros > 0

    @property
    def missing(self) -> list[Path]:
        """Files and folders that would be loaded, but do not exist."""
        return [path for path in self._sources().values() if find(path).kind == "missing"]

    @property
    def files(self) -> dict[str, Path]:
        """All files that would be loaded, by their names in the checkpoint's folder."""
        found: dict[str, Path] = {}
        for name, path in self._sources().items():
            inner = sorted(path.iterdir()) if is_folder(path) else []
            found |= {f"{name}/{file.name}": file for file in inner if is_file(file)}
            found |= {name: path} if is_file(path) else {}
        return found

    @property
    def image_files(self) -> dict[str, Path]:
        """The files of the image encoder, likewise."""
        if self._checkpoint is None or self._image_zeros:
            return {}
        return {IMAGE_ENCODER_FILE: self._checkpoint.path / IMAGE_ENCODER_FILE}

    def _sources(self) -> dict[str, Path]:
        if self._checkpoint is None:
            return {}
        text = [] if self._prompt_zeros else [TEXT_ENCODER_FILE, TOKENIZER_FOLDER]
        return {name: self._checkpoint.path / name for name in text} | self.image_files

    def load_text(self) -> Callable[[str], Tensor]:
        """Load the text encoder: prompt -> [rows, text_dim].

        Raises:
            UserError: Its weights are missing or damaged.
        """
        config = self._config
        if self._prompt_zeros:
            zeros = torch.zeros(self._prompt_zeros, config.text_dim)
            return lambda prompt: zeros
        if self._checkpoint is None:
            random = RandomTextEncoder(width=config.text_dim, seed=RANDOM_SEED)
            return lambda prompt: random.encode(prompt)[: config.text_len]
        folder = self._checkpoint
        return TextEncoder.from_checkpoint(
            folder.text_encoder, folder.tokenizer, device=self._device, dtype=self._dtype
        ).encode

    def load_image(self) -> Callable[[Tensor], Tensor]:
        """Load the image encoder: portrait [3, H, W] in -1..1 -> [1, image_len, image_dim].

        Raises:
            UserError: Its weights are missing or damaged.
        """
        config = self._config
        if self._image_zeros:
            zeros = torch.zeros(1, config.image_len, config.image_dim)
            return lambda image: zeros
        if self._checkpoint is None:
            random = RandomImageEncoder(width=config.image_dim, seed=RANDOM_SEED)
            return lambda image: random.encode(image.cpu())
        return ImageEncoder.from_checkpoint(
            self._checkpoint.image_encoder, device=self._device
        ).encode
