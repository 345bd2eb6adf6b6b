"""A model to be evaluated: a run of ``livetalk train``, a published folder, or random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

from livetalk_kernels.inputs import is_file

from ..avatar import Avatar, load_embedding
from ..loading import load_pipeline
from ..media.image import Portrait
from ..pipeline import Pipeline
from ..train.chunk_training import AUDIO_SOURCE, CONSTANTS
from ..train.training import ABOUT, read_folder

_TENSORS = {"prompt_embeds": "context", "image_embeds": "clip_fea"}
"""Argument of `Pipeline.prepare` -> tensor of a run's constants."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded model.

    Attributes:
        name: Of its folder, or of the preset.
        pipeline: The model.
        embeds: What stands for the features of prompt and picture, where the run has it.
    """

    name: str
    pipeline: Pipeline
    embeds: dict[str, Any]

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
            folder: Of a run or of published weights; None: a preset with random weights.
            preset: Its name, in that case.
            audio_encoder: Folder of wav2vec2; by default that which the run was trained with.
            device: As `load_pipeline` takes it.
            dtype: Likewise.

        Raises:
            UserError: A file is missing or damaged.
        """
        embeds = {}
        if folder is not None:
            if audio_encoder is None and is_file(folder / ABOUT):
                source = read_folder(folder)[0].sources.get(AUDIO_SOURCE)
                audio_encoder = None if source is None else Path(source)
            embeds = {
                argument: load_embedding(folder / file, tensor)
                for (argument, tensor), file in zip(_TENSORS.items(), CONSTANTS, strict=True)
                if is_file(folder / file)
            }
        pipeline = load_pipeline(
            preset=preset,
            checkpoint=folder,
            audio_encoder=audio_encoder,
            device=device,
            dtype=dtype,
        )
        name = preset or "tiny" if folder is None else folder.absolute().name
        return cls(name=name, pipeline=pipeline, embeds=embeds)

    def avatar(self, portrait: Image.Image) -> Avatar:
        """Prepare a portrait, in its own size.

        Raises:
            UserError: The model has no such constants, and its encoders are missing.
        """
        size = (portrait.height, portrait.width)
        return self.pipeline.prepare(Portrait.of(portrait), size=size, **self.embeds)
