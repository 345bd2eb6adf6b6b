"""The whole model, loaded: prepare avatars, open sessions."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from livetalk_kernels.ops import Ops

from .avatar import Avatar
from .chunk import StreamOptions
from .dit import DiT
from .encoders.audio import AudioEncoder
from .preparation import DEFAULT_PROMPT, Preparer
from .stream import Session
from .vae import VAE


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """Seconds that loading took, per part."""

    dit: float
    vae: float
    audio_encoder: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.dit + self.vae + self.audio_encoder


class Pipeline:
    """A loaded model. `load_pipeline` makes it; open as many sessions as you like.

    Attributes:
        dit: The transformer.
        vae: The VAE.
        audio_encoder: The audio encoder.
        preparer: Makes avatars for it.
        ops: The bound ops of ``"dit"`` and ``"vae"``; their ``choices`` say which and why.
        device: Where it runs.
        dtype: Of the transformer and the VAE.
        reuse: False: the published schedule, which computes constants again and again.
        random: The weights are random: the pictures mean nothing, the speed does.
        load_times: How long loading took.
    """

    def __init__(
        self,
        *,
        dit: DiT,
        audio_encoder: AudioEncoder,
        preparer: Preparer,
        load_times: LoadTimes,
    ) -> None:
        """Put loaded parts together."""
        self.dit, self.audio_encoder, self.preparer = dit, audio_encoder, preparer
        self.vae: VAE = preparer.vae
        self.ops: dict[str, Ops] = {"dit": dit.ops, "vae": preparer.ops}
        self.device, self.dtype, self.reuse = dit.device, dit.dtype, dit.reuse
        self.random = preparer.random
        self.load_times = load_times

    def prepare(
        self,
        portrait: str | Path | Image.Image,
        *,
        prompt: str = DEFAULT_PROMPT,
        size: tuple[int, int] | None = None,
        prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> Avatar:
        """Make an avatar of a portrait and a prompt; see `Preparer.prepare`."""
        return self.preparer.prepare(
            portrait,
            prompt=prompt,
            size=size,
            prompt_embeds=prompt_embeds,
            image_embeds=image_embeds,
        )

    def session(self, avatar: Avatar, *, options: StreamOptions | None = None) -> Session:
        """Open a stream.

        Args:
            avatar: From `prepare`, or `Avatar.load`.
            options: Seed, steps, shift, colour correction and frame rate.

        Raises:
            UserError: The avatar was made by another model.
        """
        self.preparer.check_avatar(avatar)
        return Session(
            self.dit,
            self.vae,
            self.audio_encoder,
            avatar,
            options or StreamOptions(),
            reuse=self.reuse,
        )
