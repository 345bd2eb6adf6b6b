"""One chunk of the streaming loop: from windows of audio features to frames.

A chunk is 33 video frames, of which the first 5 repeat the end of the chunk before: their latents
(the *motion latents*) are known and put back after every denoising step, their frames are dropped.
28 new frames remain.

Source: SoulX-FlashTalk (arXiv 2512.23379), section 3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livetalk_kernels.errors import UserError

from .avatar import Avatar
from .color import match_color, reference_stats
from .dit import AudioContext, DiT
from .guard import FiniteGuard
from .layers import ContextKV, NormRope
from .sampler import denoise, timesteps
from .stats import StageClock
from .vae import VAE, DecoderCache

CHUNK_FRAMES = 33
MOTION_FRAMES = 5
NEW_FRAMES = CHUNK_FRAMES - MOTION_FRAMES
FRAMES_PER_LATENT = 4
LATENT_FRAMES = 1 + (CHUNK_FRAMES - 1) // FRAMES_PER_LATENT

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a session generates.

    Attributes:
        seed: Seed of the noise.
        steps: Denoising steps per chunk.
        shift: Shift of the timesteps.
        color_correction: 0 (off) to 1: how far each frame's colours are moved to the portrait's.
        fps: Video frames per second of audio; the model was trained at 25.
    """

    seed: int = 9999
    steps: int = 4
    shift: float = 5.0
    color_correction: float = 1.0
    fps: float = 25.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        timesteps(self.steps, self.shift)
        if not 0 <= self.color_correction <= 1:
            raise UserError(
                f"--color-correction {self.color_correction}: must lie between 0 (off) and 1"
            )
        if not 1 <= self.fps <= 120:
            raise UserError(f"--fps {self.fps}: must lie between 1 and 120; 25 is what was trained")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be a whole number from 0 to 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    """All inputs of a step that are not the latent."""

    condition: Tensor
    context: Sequence[ContextKV]
    audio: AudioContext
    norm_rope: NormRope


class ChunkGenerator:
    """Turns windows of audio features into frames, chunk after chunk.

    With ``reuse`` everything constant is computed once: K/V of text and image, RoPE, the constant
    part of the patch embedding and all modulations at construction, the audio's K/V once a chunk,
    and the decoder's state of the motion latents as soon as those are known. Without, the
    published schedule: all of it again in every step, and the decoder starts over in every chunk.
    """

    def __init__(
        self,
        dit: DiT,
        vae: VAE,
        avatar: Avatar,
        options: StreamOptions,
        *,
        reuse: bool = True,
        clock: StageClock | None = None,
    ) -> None:
        """Prepare all that depends on the avatar only.

        Args:
            dit: The transformer.
            vae: The VAE, on the same device.
            avatar: Whom to animate.
            options: How.
            reuse: False: the published schedule.
            clock: Where the stages' times go.
        """
        self.device = dit.device
        self.dit, self.vae, self.avatar, self.reuse = dit, vae, avatar, reuse
        self.clock = clock or StageClock(self.device)
        self.strength = options.color_correction
        self.schedule = timesteps(options.steps, options.shift)
        self.guard = FiniteGuard()
        self._generator = torch.Generator(self.device).manual_seed(options.seed)
        with torch.inference_mode(), self.clock.stage("prepare"):
            condition = avatar.condition.to(self.device, dit.dtype)
            self._latent_shape = tuple(condition.shape)
            mask = torch.zeros_like(condition[:FRAMES_PER_LATENT])
            mask[:, 0] = 1
            self._constant = torch.cat((mask, condition))[None]
            self._text = avatar.context.to(self.device)
            self._image = avatar.clip_fea.to(self.device)
            self._grid = dit.token_grid(condition)
            portrait = avatar.portrait.to(self.device).to(dit.dtype)
            self._colors = reference_stats(((portrait / 255 - 0.5) * 2)[None, :, None])
            # The first frame of a causal encoding does not see the grey frames behind it.
            self.motion = condition[:, :1]
            if reuse:
                self._steps = dit.prepare_steps(self.schedule[:-1])
                self._norm_rope = dit.prepare_rope(self._grid)
                self._tokens = dit.prepare_condition(self._constant)
                self._context = dit.prepare_context(self._text, self._image)
                self._decoder = self._warm_decoder()

    # A chunk ------------------------------------------------------------------------------

    @torch.inference_mode()
    def latents(self, windows: Tensor) -> Tensor:
        """Denoise one chunk.

        Args:
            windows: [P, 33, window, layers, channels] audio features of the chunk's frames.

        Returns:
            float32 [16, 9, h, w] normalised latents, the motion latents in front.
        """
        windows = windows.to(self.device)
        self.guard.check("audio encoder", windows)
        once: _Conditions | None = None
        if self.reuse:
            with self.clock.stage("audio K/V"):
                once = _Conditions(
                    condition=self._tokens,
                    context=self._context,
                    audio=self.dit.prepare_audio(windows),
                    norm_rope=self._norm_rope,
                )

        def model(latent: Tensor, index: int) -> Tensor:
            with self.clock.stage("denoise"):
                step = (
                    self._steps[index]
                    if self.reuse
                    else self.dit.prepare_steps(self.schedule[index : index + 1])[0]
                )
                inputs = vars(once or self._published_conditions(windows))
                flow = self.dit(latent[None].to(self.dit.dtype), step=step, **inputs)[0]
            self.guard.check(f"DiT step {index + 1}", flow)
            return flow

        return denoise(model, self.schedule, self.motion, self._noise)

    def chunk(
        self, windows: Tensor, *, frames: int = NEW_FRAMES, last: bool = False
    ) -> Iterator[Frames]:
        """Generate one chunk; frames leave as they are decoded.

        Args:
            windows: [P, 33, window, layers, channels] audio features of the chunk's frames.
            frames: How many of the 28 new frames are wanted.
            last: No chunk follows: the motion latents for the next are not computed.

        Yields:
            uint8 [n, H, W, 3] frames, in order.

        Raises:
            NumericsError: NaN or Inf arose; the frames concerned are not yielded.
        """
        latents = self.latents(windows)
        tail: Tensor | None = None
        left = frames
        for decoded in self._decode(latents, limit=MOTION_FRAMES + frames):
            with torch.inference_mode(), self.clock.stage("colour"):
                colored = match_color(decoded, self._colors, self.strength)
                joined = colored if tail is None else torch.cat((tail, colored), dim=2)
                tail = joined[:, :, -MOTION_FRAMES:]
            with torch.inference_mode(), self.clock.stage("to host"):
                pixels = to_uint8(colored[0, :, :, :, :]).cpu()[:left]
            self.guard.raise_if_bad()
            left -= len(pixels)
            if len(pixels):
                yield pixels.numpy()
        if not last:
            assert tail is not None
            with torch.inference_mode():
                with self.clock.stage("encode"):
                    self.motion = self.vae.encode(tail)[0]
                self.guard.check("VAE encoder", self.motion)
                if self.reuse:
                    with self.clock.stage("warm decoder"):
                        self._decoder = self._warm_decoder()
            self.guard.raise_if_bad()

    def _decode(self, latents: Tensor, limit: int) -> Iterator[Tensor]:
        """Decode until ``limit`` frames of the chunk; yields [1, 3, n, H, W] after the motion."""
        latents = latents[None].to(self.dit.dtype)
        if not self.reuse:
            with torch.inference_mode(), self.clock.stage("decode"):
                frames = self.vae.decode(latents)
            self.guard.check("VAE decoder", frames)
            yield frames[:, :, MOTION_FRAMES:]
            return
        cache = self._decoder
        first = 1 + (MOTION_FRAMES - 1) // FRAMES_PER_LATENT
        known = self.motion.shape[1]
        if known < first:  # the first chunk: the rest of the dropped frames still makes state
            with torch.inference_mode(), self.clock.stage("decode"):
                self.vae.warm(latents[:, :, known:first], cache)
        for index in range(first, latents.shape[2]):
            if 1 + (index - 1) * FRAMES_PER_LATENT >= limit:
                return
            with torch.inference_mode(), self.clock.stage("decode"):
                frames = self.vae.decode_step(latents[:, :, index : index + 1], cache)
            self.guard.check("VAE decoder", frames)
            yield frames

    def _warm_decoder(self) -> DecoderCache:
        cache = DecoderCache()
        self.vae.warm(self.motion[None].to(self.dit.dtype), cache)
        return cache

    def _published_conditions(self, windows: Tensor) -> _Conditions:
        return _Conditions(
            condition=self.dit.prepare_condition(self._constant),
            context=self.dit.prepare_context(self._text, self._image),
            audio=self.dit.prepare_audio(windows),
            norm_rope=self.dit.prepare_rope(self._grid),
        )

    def _noise(self, first: bool) -> Tensor:
        dtype = self.dit.dtype if first else torch.float32
        return torch.randn(
            self._latent_shape, dtype=dtype, device=self.device, generator=self._generator
        )


def to_uint8(frames_CTHW: Tensor) -> Tensor:
    """Frames in -1..1, [3, T, H, W] -> uint8 [T, H, W, 3], truncated as published."""
    scaled = ((frames_CTHW.permute(1, 2, 3, 0).float() + 1) / 2).clamp(0, 1) * 255
    return scaled.to(torch.uint8)
