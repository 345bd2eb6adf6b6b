"""Work that is done once, and the published schedule that repeats it: one object each.

`ChunkGenerator` asks its `Work` for everything that a denoising step takes in addition to the
latent, and for the frames of finished latents. `WorkOnce` computes each thing as soon as it is
known and keeps it:

====================================================  =================================
what                                                  is computed once per
====================================================  =================================
K and V of text and image in all layers               session
patch embedding of the 20 constant channels           session
RoPE table (float32 pairs)                            session
time embedding and all modulations                    session
audio tokens, their K and V in all layers             chunk
decoder state of the motion latents                   chunk, concurrently with denoising
====================================================  =================================

`PublishedWork` recomputes all of it in every step, and decodes every chunk from its first latent.
What depends on the weights' layout is in the model itself, built with the same switch: fused QKV
(`dit.py`), upsampling folded into taps, and no taps on zero frames (`vae_layers.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk_kernels.runtime.halo import WHOLE, Whole
from livetalk_kernels.runtime.lanes import Handle, InlineLane, Lane

from ..avatar import Avatar
from ..config import FRAMES_PER_LATENT, MOTION_FRAMES, MOTION_LATENTS
from ..dit import AudioContext, DiT, StepModulation
from ..layers import ContextKV, NormRope
from ..vae import VAE, DecoderCache
from .stats import StageClock

MASK_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class StepInputs:
    """What `DiT.forward` takes in addition to the latent; see there."""

    step: StepModulation
    condition: Tensor
    context: Sequence[ContextKV]
    audio: AudioContext
    norm_rope: NormRope


class Work(ABC):
    """What a stream of one avatar computes apart from the steps themselves.

    Attributes:
        dit: The transformer.
        vae: The VAE.
        clock: Records the stages' times.
        lane: Where the decoder is advanced to the end of the motion latents.
        schedule: [steps + 1] timesteps.
        portrait_latents: [16, T, h, w] latents of the portrait and grey frames.
        constant: [1, 20, T, h, w] mask and portrait latents, in the transformer's dtype.
        text: [L, 4096] prompt embedding.
        image: [1, 257, 1280] image features.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        avatar: Avatar,
        schedule: Tensor,
        clock: StageClock,
        *,
        lane: Lane | None = None,
        halo: Whole = WHOLE,
    ) -> None:
        """Copy the avatar's tensors to the model's device; without ``lane`` everything runs inline.

        ``halo``: the VAE's part in a picture that several ranks share.
        """
        self.halo = halo
        self.dit, self.vae, self.clock, self.schedule = dit, vae, clock, schedule
        self.lane = lane or InlineLane()
        self.portrait_latents = avatar.condition.to(dit.device, dit.dtype)
        mask = torch.zeros_like(self.portrait_latents[:MASK_CHANNELS])
        mask[:, 0] = 1
        self.constant = torch.cat((mask, self.portrait_latents))[None]
        self.text = avatar.context.to(dit.device)
        self.image = avatar.clip_fea.to(dit.device)
        self.grid = dit.token_grid(self.portrait_latents)

    @abstractmethod
    def know_motion(self, motion: Tensor, stage: str = "warm decoder") -> None:
        """Set the motion latents [16, 1 or 2, h, w] of the next chunk.

        What can be computed from them is timed as ``stage``, and may still run after this returns.
        """

    @abstractmethod
    def begin_chunk(self, windows: Tensor) -> None:
        """Set the audio windows [P, 33, window, layers, channels] of the next chunk."""

    @abstractmethod
    def inputs(self, index: int) -> StepInputs:
        """Return the inputs of the chunk's step ``index``."""

    @abstractmethod
    def decode(self, latents: Tensor, count: int) -> Iterator[Tensor]:
        """Decode the chunk's latents [1, 16, 9, h, w], piece by piece.

        Yields:
            Pixels [1, 3, n, H, W] of the slice at hand, not clamped, from the chunk's first frame
            that is not dropped until at least ``count`` have come or all are out.
        """

    @abstractmethod
    def end_decoding(self) -> None:
        """Prepare for another chunk, once this one's frames are out."""


class WorkOnce(Work):
    """Computes everything as soon as it is known, and keeps it."""

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        avatar: Avatar,
        schedule: Tensor,
        clock: StageClock,
        *,
        lane: Lane | None = None,
        halo: Whole = WHOLE,
        decode_step: Callable[..., Tensor] | None = None,
    ) -> None:
        """Compute what depends on avatar, size and schedule.

        ``decode_step``: `VAE.decode_step`, or a substitute.
        """
        self._decode_step = decode_step or vae.decode_step
        super().__init__(dit, vae, avatar, schedule, clock, lane=lane, halo=halo)
        self._steps = dit.prepare_steps(schedule[:-1])
        self._norm_rope = dit.prepare_rope(self.grid)
        self._condition = dit.prepare_condition(self.constant)
        self._context = dit.prepare_context(self.text, self.image)
        self._audio: AudioContext | None = None
        self._decoder = DecoderCache(halo=halo)
        self._warm: Handle[DecoderCache] | None = None
        self._known = 0

    def know_motion(self, motion: Tensor, stage: str = "warm decoder") -> None:
        """Advance the decoder to the end of the motion latents, on the lane."""
        self._known = motion.shape[1]
        latents = self.halo.take(motion[None].to(self.dit.dtype))
        cache = self._decoder = DecoderCache(halo=self.halo)

        def warm() -> DecoderCache:
            with self.clock.stage(stage, self.lane.name):
                self.vae.warm(latents, cache)
            return cache

        self._warm = self.lane.submit(warm, latents)

    def begin_chunk(self, windows: Tensor) -> None:
        """Compute the audio's keys and values."""
        with self.clock.stage("audio K/V"):
            self._audio = self.dit.prepare_audio(windows, size=self.grid[1:])

    def inputs(self, index: int) -> StepInputs:
        """Return the inputs, of which only the modulation differs between steps."""
        assert self._audio is not None
        return StepInputs(
            step=self._steps[index],
            condition=self._condition,
            context=self._context,
            audio=self._audio,
            norm_rope=self._norm_rope,
        )

    def decode(self, latents: Tensor, count: int) -> Iterator[Tensor]:
        """Continue from the motion latents, one latent at a time."""
        assert self._warm is not None
        self._warm.result()
        self._warm = None
        first, latents = MOTION_LATENTS, self.halo.take(latents)
        if self._known < first:  # the first chunk: dropped latents still create state
            with torch.inference_mode(), self.clock.stage("decode"):
                self.vae.warm(latents[:, :, self._known : first], self._decoder)
        for index in range(first, min(latents.shape[2], first - (-count // FRAMES_PER_LATENT))):
            with torch.inference_mode(), self.clock.stage("decode"):
                latent = latents[:, :, index : index + 1]
                frames = self._decode_step(latent, self._decoder, clamp=False)
            yield frames

    def end_decoding(self) -> None:
        """Make room for the encoder's state."""
        self._decoder = DecoderCache(halo=self.halo)


class PublishedWork(Work):
    """Recomputes everything in every step, like the published code."""

    _windows: Tensor

    def know_motion(self, motion: Tensor, stage: str = "warm decoder") -> None:
        """Do nothing: nothing is kept."""

    def begin_chunk(self, windows: Tensor) -> None:
        """Keep the windows; their keys and values are computed in every step."""
        self._windows = windows

    def inputs(self, index: int) -> StepInputs:
        """Compute everything anew."""
        return StepInputs(
            step=self.dit.prepare_steps(self.schedule[index : index + 1])[0],
            condition=self.dit.prepare_condition(self.constant),
            context=self.dit.prepare_context(self.text, self.image),
            audio=self.dit.prepare_audio(self._windows),
            norm_rope=self.dit.prepare_rope(self.grid),
        )

    def decode(self, latents: Tensor, count: int) -> Iterator[Tensor]:
        """Decode all latents at once; the frames of the motion latents are dropped afterwards."""
        with torch.inference_mode(), self.clock.stage("decode"):
            frames = self.vae.decode(latents, clamp=False)
        yield frames[:, :, MOTION_FRAMES:]

    def end_decoding(self) -> None:
        """Do nothing: nothing is kept."""
