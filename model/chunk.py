"""One chunk of the streaming loop: from windows of audio features to frames.

A chunk is 33 video frames, of which the first 5 repeat the end of the chunk before: their latents
(the *motion latents*) are known and put back after every denoising step, their frames are dropped.
28 new frames remain.

Source: SoulX-FlashTalk (arXiv 2512.23379), section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livetalk_kernels.errors import UserError

from .avatar import Avatar
from .color import match_color, reference_stats
from .config import CHUNK_FRAMES, MOTION_FRAMES, NEW_FRAMES
from .dit import DiT
from .guard import FiniteGuard
from .reuse import PublishedWork, WorkOnce
from .sampler import denoise, timesteps
from .stats import StageClock
from .vae import VAE

MIN_FPS = CHUNK_FRAMES / 8  # the audio encoder sees 8 s, which must hold a chunk
MAX_FPS = 120

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
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise UserError(
                f"--fps {self.fps}: must lie between {MIN_FPS} and {MAX_FPS}; "
                "25 is what was trained"
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be a whole number from 0 to 2^63 - 1")


class ChunkGenerator:
    """Turns windows of audio features into frames, chunk after chunk."""

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
            vae: The VAE, on the same device and of the same dtype.
            avatar: Whom to animate.
            options: How.
            reuse: False: the published schedule (`PublishedWork`).
            clock: Where the stages' times go.
        """
        self.dit, self.vae, self.device = dit, vae, dit.device
        self.clock = clock or StageClock(self.device)
        self.strength = options.color_correction
        self.schedule = timesteps(options.steps, options.shift)
        self.guard = FiniteGuard()
        self._generator = torch.Generator(self.device).manual_seed(options.seed)
        with torch.inference_mode(), self.clock.stage("prepare"):
            portrait = from_uint8(avatar.portrait.to(self.device), dit.dtype)
            self._colors = reference_stats(portrait[None, :, None])
            kind = WorkOnce if reuse else PublishedWork
            self.work = kind(dit, vae, avatar, self.schedule, self.clock)
            # The first frame of a causal encoding does not see the grey frames behind it.
            self.motion = self.work.portrait_latents[:, :1]
            self.work.know_motion(self.motion)

    @torch.inference_mode()
    def latents(self, windows: Tensor) -> Tensor:
        """Denoise one chunk.

        Args:
            windows: [1, 33, window, layers, channels] audio features of the chunk's frames.

        Returns:
            float32 [16, 9, h, w] normalised latents, the motion latents in front.
        """
        windows = windows.to(self.device)
        self.guard.check("audio encoder", windows)
        self.work.begin_chunk(windows)

        def model(latent: Tensor, index: int) -> Tensor:
            with self.clock.stage("denoise"):
                inputs = self.work.inputs(index)
                flow = self.dit(latent[None].to(self.dit.dtype), **vars(inputs))[0]
            self.guard.check(f"DiT step {index + 1}", flow)
            return flow

        return denoise(model, self.schedule, self.motion, self._noise)

    def chunk(
        self, windows: Tensor, *, frames: int = NEW_FRAMES, last: bool = False
    ) -> Iterator[Frames]:
        """Generate one chunk; frames leave as they are decoded.

        Args:
            windows: [1, 33, window, layers, channels] audio features of the chunk's frames.
            frames: How many of the 28 new frames are wanted.
            last: No chunk follows: the motion latents for the next are not computed.

        Yields:
            uint8 [n, H, W, 3] frames, in order.

        Raises:
            NumericsError: NaN or Inf arose; the frames concerned are not yielded.
        """
        latents = self.latents(windows)[None].to(self.dit.dtype)
        tail: Tensor | None = None
        left = frames
        for decoded in self.work.decode(latents, frames):
            self.guard.check("VAE decoder", decoded)
            with torch.inference_mode(), self.clock.stage("colour"):
                colored = match_color(decoded.clamp_(-1, 1), self._colors, self.strength)
                joined = colored if tail is None else torch.cat((tail, colored), dim=2)
                tail = joined[:, :, -MOTION_FRAMES:]
            with torch.inference_mode(), self.clock.stage("to host"):
                pixels = to_uint8(colored[0]).cpu()[:left]
            self.guard.raise_if_bad()
            left -= len(pixels)
            yield pixels.numpy()
        if last:
            return
        assert tail is not None
        self.work.end_decoding()
        with torch.inference_mode():
            with self.clock.stage("encode"):
                self.motion = self.vae.encode(tail)[0]
            self.guard.check("VAE encoder", self.motion)
            with self.clock.stage("warm decoder"):
                self.work.know_motion(self.motion)
        self.guard.raise_if_bad()

    def _noise(self, first: bool) -> Tensor:
        dtype = self.dit.dtype if first else torch.float32
        return torch.randn(
            self.work.portrait_latents.shape,
            dtype=dtype,
            device=self.device,
            generator=self._generator,
        )


def from_uint8(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Uint8 pixels of any shape -> -1..1 in ``dtype``, in the published order of operations."""
    return (pixels.to(dtype) / 255 - 0.5) * 2


def to_uint8(frames_CTHW: Tensor) -> Tensor:
    """Frames in -1..1, [3, T, H, W] -> uint8 [T, H, W, 3], truncated as published."""
    scaled = ((frames_CTHW.permute(1, 2, 3, 0).float() + 1) / 2).clamp(0, 1) * 255
    return scaled.to(torch.uint8)
