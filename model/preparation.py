"""Portrait and prompt to avatar: the part of the model behind `livetalk prepare`.

It uses the VAE and, unless their embeddings are given, the text and the image encoder, but neither
the transformer nor the audio encoder.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import Ops

from .avatar import Avatar, before_grey
from .config import DiTConfig
from .encoders.conditions import ConditionEncoders
from .media.image import Crop, Portrait, load_portrait, parse_crop
from .own import OwnModel
from .picture_size import check_size
from .stream.chunk import from_uint8
from .stream.finite import FiniteGuard
from .vae import VAE
from .weights.checkpoint import CheckpointFolder

DEFAULT_PROMPT = (
    "A person is talking to the camera. The head moves gently, the background is still."
)
RANDOM_NOTE = "random weights"

_STRANGE_DB = 3.0  # below the worst in the data
# Avatars do not depend on the audio encoder, which `prepare` does not know.
_AUDIO_FIELDS = ("audio_layers", "audio_dim")


class Preparer:
    """Makes avatars.

    Attributes:
        config: Shape of the transformer that the avatars are for.
        vae: The VAE.
        size: Default picture size (height, width) in pixels.
        random: Whether the weights are random.
        ops: The ops of the VAE.
        load_seconds: Loading time.
        fingerprint: 12 hex digits from the configuration and some VAE weights, the same for
            every dtype; avatar files carry it.
    """

    def __init__(
        self,
        *,
        config: DiTConfig,
        vae: VAE,
        ops: Ops,
        size: tuple[int, int],
        checkpoint: CheckpointFolder | None,
        load_seconds: float,
        rounded: bool = False,
        own: OwnModel | None = None,
    ) -> None:
        """Assemble loaded parts; without a checkpoint the encoders are random.

        Zeros replace encoders that the model declares it lacks (``own``).
        """
        self.rounded = rounded
        self.config, self.vae, self.size = config, vae, size
        self.load_seconds = load_seconds
        self.ops = ops
        self.random = checkpoint is None
        self._own = own
        weight = vae.get_parameter("conv1.weight").detach()
        self._device, self._dtype = weight.device, weight.dtype
        self._encoders = ConditionEncoders(
            config, checkpoint, own, device=self._device, dtype=self._dtype
        )
        shape = {k: v for k, v in dataclasses.asdict(config).items() if k not in _AUDIO_FIELDS}
        shape["vae"] = dataclasses.asdict(vae.config)
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        assert vae.sample is not None, "the VAE is prepared"
        digest.update(vae.sample.view(torch.int16).numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:12]

    def prepare(
        self,
        portrait: str | Path | Image.Image | Portrait,
        *,
        prompt: str = DEFAULT_PROMPT,
        size: tuple[int, int] | None = None,
        crop: Crop | str | None = None,
        prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> Avatar:
        """Make an avatar from a portrait and a prompt.

        The text and image encoders are loaded for this call only, and only if their embedding is
        not given.

        Args:
            portrait: Picture file, PIL image (which is not rotated) or `Portrait`; it is scaled to
                cover ``size`` and cropped.
            prompt: Description of the scene; ignored by a model without a text encoder.
            size: Height and width in pixels, multiples of 16; by default the model's.
            crop: Part of the portrait to keep: ``"top"``, ``"centre"`` or (x, y, width, height) in
                its pixels; by default the centre, with a warning if that loses much.
            prompt_embeds: [L, 4096], instead of encoding the prompt.
            image_embeds: [1, 257, 1280], instead of encoding the picture.

        Returns:
            The avatar; its ``warnings`` are for the user.

        Raises:
            UserError: The picture, size, crop or an embedding is invalid, or an encoder's weights
                are missing.
            NumericsError: An encoder returned NaN or Inf; the message names it.
        """
        height, width = check_size(size or self.size)
        if isinstance(portrait, Image.Image):
            portrait = Portrait.of(portrait)
        elif not isinstance(portrait, Portrait):
            portrait = load_portrait(portrait)
        if isinstance(crop, str):
            crop = parse_crop(crop)
        pixels, warnings = portrait.fit((height, width), crop)
        video = from_uint8(pixels.to(self._device), self._dtype)[None, :, None]
        guard = FiniteGuard()
        with torch.inference_mode():
            condition = self._encode_condition(video)
            guard.check("VAE encoder", condition)
            context, features = prompt_embeds, image_embeds
            encoded = context is None or features is None
            if context is None:
                context = self._encoders.load_text()(prompt)
                guard.check("text encoder", context)
            if features is None:
                features = self._encoders.load_image()(video[0, :, 0].float())
                guard.check("image encoder", features)
        guard.raise_if_bad()
        check_embeddings(self.config, context, features)
        warnings += self._strangeness(video, condition)
        wordless = self._encoders.wordless
        if wordless and prompt != DEFAULT_PROMPT:
            warnings += ("the model was trained without prompts; this one changes nothing",)
        return Avatar(
            context=context.cpu(),
            clip_fea=features.cpu(),
            condition=condition.cpu(),
            portrait=pixels,
            model=self.fingerprint,
            prompt="" if prompt_embeds is not None or wordless else prompt,
            note=RANDOM_NOTE if self.random and encoded else "",
            warnings=warnings,
        )

    def _strangeness(self, video: Tensor, condition: Tensor) -> tuple[str, ...]:
        """Warn if a portrait is unlike those that the model was trained on."""
        usual = None if self._own is None else self._own.portrait_db
        if usual is None:
            return ()
        found = portrait_db(self.vae, video, condition[None])
        if found >= usual - _STRANGE_DB:
            return ()
        return (
            f"the portrait is unlike those that this model was trained on ({found:.0f} dB through "
            f"its VAE, theirs {usual:.0f} or more): expect a blurred or changed face",
        )

    def _encode_condition(self, video: Tensor) -> Tensor:
        """Encode the portrait followed by grey frames, [16, 9, H/8, W/8]."""
        return self.vae.encode(before_grey(video))[0]

    def check_avatar(self, avatar: Avatar, name: str = "the avatar") -> None:
        """Check that an avatar was made by this model.

        Args:
            avatar: The avatar.
            name: Its name in errors: its file.

        Raises:
            UserError: It was made by another one.
        """
        if avatar.model != self.fingerprint:
            raise UserError(
                f"{name}: was made by model {avatar.model}, this is {self.fingerprint}; "
                "prepare it again with this checkpoint or preset"
            )
        check_embeddings(
            self.config,
            avatar.context,
            avatar.clip_fea,
            context_name=f"{name}: context",
            features_name=f"{name}: clip_fea",
        )


def check_embeddings(
    config: DiTConfig,
    context: Tensor | None,
    features: Tensor | None,
    *,
    context_name: str = "prompt embedding",
    features_name: str = "image embedding",
) -> None:
    """Check the shapes of embeddings that were computed elsewhere.

    Args:
        config: Shape of the transformer.
        context: Prompt embedding, if given.
        features: Image embedding, if given.
        context_name: Name of the first in errors: its file.
        features_name: Name of the second.

    Raises:
        UserError: A shape does not fit the transformer.
    """
    rows, width = config.text_len, config.text_dim
    if context is not None and (
        context.dim() != 2 or context.shape[1] != width or not 0 < len(context) <= rows
    ):
        raise UserError(
            f"{context_name}: {list(context.shape)}, but [1 to {rows}, {width}] is needed; "
            "compute it with the model's own text encoder"
        )
    image = (1, config.image_len, config.image_dim)
    if features is not None and tuple(features.shape) != image:
        raise UserError(
            f"{features_name}: {list(features.shape)}, but {list(image)} is needed; "
            "compute it with the model's own image encoder"
        )


@torch.inference_mode()
def portrait_db(vae: VAE, picture_BCTHW: Tensor, condition_BCTHW: Tensor) -> float:
    """Compute the PSNR in dB at which a VAE reconstructs a portrait.

    Args:
        vae: The VAE.
        picture_BCTHW: [1, 3, 1, H, W] in -1..1.
        condition_BCTHW: [1, 16, 9, h, w] its latents, `Avatar.condition`.
    """
    back = vae.decode(condition_BCTHW[:, :, :1].to(picture_BCTHW.dtype))
    error = ((back - picture_BCTHW).float() / 2).square().mean()
    return float(-10 * torch.log10(error.clamp_min(1e-20)))
