"""The whole model, loaded: prepare avatars, open sessions."""

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
    """Seconds that loading took, per part."""

    dit: float
    vae: float
    audio_encoder: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.dit + self.vae + self.audio_encoder


class Pipeline:
    """A loaded model. `load_pipeline` makes it; open as many sessions at a time as you like.

    Their chunks are made in turn, by a thread that lives while a session is open; on several ranks
    as well.

    Attributes:
        dit: The transformer.
        vae: The VAE.
        audio_encoder: The audio encoder; None on ranks that follow.
        preparer: Makes avatars for it.
        ops: The bound ops of ``"dit"`` and ``"vae"``; their ``choices`` say which and why.
        device: Where it runs.
        dtype: Of the transformer and the VAE.
        reuse: False: the published schedule, which computes constants again and again.
        team: The ranks that share the work.
        graphed: A stream replays CUDA graphs.
        compiled: The transformer runs by torch.compile.
        calls: What a stream calls: the models' methods, or what stands for them.
        rounded: Weights of the transformer or the VAE were cast to FP8 before they were loaded.
        random: The weights are random: the pictures mean nothing, the speed does.
        load_times: How long loading took.
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
        """Put loaded parts together."""
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
        """What of a run is not exact, besides `DiT.fp8`."""
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
        """Make an avatar of a portrait and a prompt; see `Preparer.prepare`."""
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

        While a chunk of another session is made, its end is waited for.

        Args:
            avatar: From `prepare`, or `Avatar.load`.
            options: Seed, steps, shift, colour correction and frame rate.
            timeline: Where its stages are recorded.

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
        """What the other ranks of a team do until rank 0 calls `end`.

        Args:
            timeline: Where the stages are recorded.
            ended: Told how many chunks are done, of all sessions, after each of them.

        Raises:
            CommError: A rank is lost.
        """
        follow(self.dit, self.vae, self.team, timeline=timeline, calls=self.calls, ended=ended)

    def end(self) -> None:
        """Rank 0: close all sessions and let the other ranks go.

        Raises:
            CommError: A rank was lost.
        """
        self._producer.end()
        self.team.tell({"what": "end"})
