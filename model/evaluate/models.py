"""Loads a model to evaluate: a run of ``livetalk train``, a published folder, or random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

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

    def avatar(self, portrait: Image.Image) -> Avatar:
        """Prepare a portrait at its own size.

        Raises:
            UserError: The model does not replace encoders by constants, and they are missing.
        """
        size = (portrait.height, portrait.width)
        return self.pipeline.prepare(Portrait.of(portrait), size=size)
