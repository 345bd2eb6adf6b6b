"""Loads a model to evaluate: a run of ``livetalk train``, a published folder, or random weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from PIL import Image

from livetalk_kernels.errors import UserError

from ..avatar import Avatar
from ..loading import load_pipeline
from ..media.image import Portrait
from ..pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded model.

    Attributes:
        name: Name of its folder, or of the preset.
        pipeline: The model.
    """

    name: str
    pipeline: Pipeline

    @classmethod
    def load(
        cls,
        folder: Path | None,
        *,
        preset: str | None,
        audio_encoder: Path | None,
        device: str,
        dtype: str,
    ) -> Self:
        """Load a model.

        Args:
            folder: Folder of a run or of published weights; None: a preset with random weights.
            preset: Name of the preset, in that case.
            audio_encoder: Folder of wav2vec2; by default the one the run was trained with.
            device: As in `load_pipeline`.
            dtype: As in `load_pipeline`.

        Raises:
            UserError: A file is missing or damaged.
        """
        pipeline = load_pipeline(
            preset=preset,
            checkpoint=folder,
            audio_encoder=audio_encoder,
            device=device,
            dtype=dtype,
        )
        name = preset or "tiny" if folder is None else folder.absolute().name
        return cls(name=name, pipeline=pipeline)

    @cached_property
    def vae(self) -> str:
        """Digest of the VAE's dtype, device and weights."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.pipeline.vae.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {weight.device} {list(weight.shape)}".encode())
            digest.update(weight.contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def avatar(self, portrait: Image.Image) -> Avatar:
        """Prepare a portrait at its own size.

        Raises:
            UserError: The model does not replace encoders by constants, and they are missing.
        """
        size = (portrait.height, portrait.width)
        return self.pipeline.prepare(Portrait.of(portrait), size=size)


def load_models(
    this: Sequence[Path],
    against: Sequence[Path],
    *,
    preset: str | None,
    audio_encoder: Path | None,
    device: str,
    dtype: str,
) -> dict[str, list[Model]]:
    """Load ``this``, and possibly ``against``: each one model, or runs of one recipe.

    Args:
        this: Folders; with none, a preset with random weights.
        against: As many folders; none for no comparison.
        preset: Name of the preset, if there are no folders.
        audio_encoder: See `Model.load`.
        device: As in `load_pipeline`.
        dtype: As in `load_pipeline`.

    Raises:
        UserError: The numbers of runs differ, or a file is missing or damaged.
    """
    folders: dict[str, Sequence[Path | None]] = {"this": this or [None]}
    if against:
        folders["against"] = against
        if len(against) != len(folders["this"]):
            raise UserError("--against: give as many runs as with --checkpoint, in the same order")
    return {
        name: [
            Model.load(
                folder,
                preset=preset if folder is None else None,
                audio_encoder=audio_encoder,
                device=device,
                dtype=dtype,
            )
            for folder in runs
        ]
        for name, runs in folders.items()
    }
