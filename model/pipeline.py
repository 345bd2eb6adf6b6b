"""The whole model, loaded: prepares avatars, opens sessions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.timeline import Timeline

from .avatar import Avatar
from .dit import DiT
from .encoders.audio import AudioEncoder
from .media.image import Crop, Portrait
from .preparation import DEFAULT_PROMPT, Preparer
from .stream.chunk import StreamOptions
from .stream.follower import follow
from .stream.graphs import StreamCalls
from .stream.producer import Producer
from .stream.session import Session
from .stream.team import Team
from .vae import VAE


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """Seconds that each part took to load."""

    dit: float
    vae: float
    audio_encoder: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.dit + self.vae + self.audio_encoder


class Pipeline:
    """A loaded model. Create it with `load_pipeline`; open as many sessions at a time as you like.

    Their chunks are made alternately, by a thread that lives while a session is open; the same
    holds on several ranks.

    Attributes:
        dit: The transformer.
        vae: The VAE.
        audio_encoder: The audio encoder; None on follower ranks.
        preparer: Makes avatars for it.
        ops: The bound ops of ``"dit"`` and ``"vae"``; their ``choices`` say which and why.
        device: Device of the model.
        dtype: Dtype of the transformer and the VAE.
        reuse: False for the published schedule, which recomputes constants.
        team: Ranks that share the work.
        graphed: Whether streams replay CUDA graphs.
        compiled: Whether the transformer runs through torch.compile.
        calls: What a stream calls: the models' methods, or substitutes.
        rounded: Whether weights of transformer or VAE had been cast to FP8 before loading.
        random: Whether weights are random: then pictures are meaningless, but speed is real.
        load_times: Loading times.
    """

    def __init__(
        self,
        *,
        dit: DiT,
        audio_encoder: AudioEncoder | None,
        preparer: Preparer,
        load_times: LoadTimes,
        team: Team | None = None,
        cuda_graphs: bool = False,
        compiled: bool = False,
        rounded: bool = False,
    ) -> None:
        """Assemble loaded parts."""
        self.rounded = rounded or preparer.rounded
        self.dit, self.audio_encoder, self.preparer = dit, audio_encoder, preparer
        self.vae: VAE = preparer.vae
        self.ops: dict[str, Ops] = {"dit": dit.ops, "vae": preparer.ops}
        self.device, self.dtype, self.reuse = dit.device, dit.dtype, dit.reuse
        self.random = preparer.random
        self.team = Team() if team is None else team
        self.graphed = cuda_graphs and dit.device.type == "cuda"
        self.compiled = compiled
        self.calls = StreamCalls.of(dit, self.vae, cuda_graphs=self.graphed, compiled=compiled)
        self.load_times = load_times
        self._producer = Producer(self.team.phase)

    @property
    def approximate(self) -> list[str]:
        """What in a run is not exact, apart from `DiT.fp8`."""
        found = {
            f"{op}={choice.name}"
            for ops in self.ops.values()
            for op, choice in ops.choices.items()
            if choice.approximate
        }
        if self.dit.parallel.approximate:
            found.add("FP8 exchange")
        if self.rounded:
            found.add("FP8 weights")
        return sorted(found)

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
        """Make an avatar from a portrait and a prompt; see `Preparer.prepare`."""
        return self.preparer.prepare(
            portrait,
            prompt=prompt,
            size=size,
            crop=crop,
            prompt_embeds=prompt_embeds,
            image_embeds=image_embeds,
        )

    def session(
        self,
        avatar: Avatar,
        *,
        options: StreamOptions | None = None,
        timeline: Timeline | None = None,
    ) -> Session:
        """Open a stream; in a team on rank 0, while the others `follow`.

        Waits if a chunk of another session is being made.

        Args:
            avatar: From `prepare`, or `Avatar.load`.
            options: Seed, steps, shift, colour correction and frame rate.
            timeline: Records its stages.

        Raises:
            UserError: The avatar was made by another model, or is too small for the team.
        """
        assert self.audio_encoder is not None, "ranks other than 0 follow"
        self.preparer.check_avatar(avatar)
        return Session(
            self.dit,
            self.vae,
            self.audio_encoder,
            avatar,
            options or StreamOptions(),
            reuse=self.reuse,
            timeline=timeline,
            team=self.team,
            calls=self.calls,
            producer=self._producer,
        )

    def follow(
        self,
        timeline: Timeline | None = None,
        ended: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Run a follower rank of a team until rank 0 calls `end`.

        Args:
            timeline: Records the stages.
            ended: Called after each chunk with the number of chunks done, over all sessions.

        Raises:
            CommError: A rank is lost.
        """
        follow(self.dit, self.vae, self.team, timeline=timeline, calls=self.calls, ended=ended)

    def end(self) -> None:
        """Close all sessions and release the other ranks; for rank 0.

        Raises:
            CommError: A rank was lost.
        """
        self._producer.end()
        self.team.send({"what": "end"})
