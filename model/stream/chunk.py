"""One chunk of the streaming loop: from windows of audio features to frames.

A chunk is 33 video frames, of which the first 5 repeat the end of the previous chunk: their latents
(the *motion latents*) are known and restored after every denoising step, and their frames are
dropped. 28 new frames remain.

Source: SoulX-FlashTalk (arXiv 2512.23379), section 3.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.host_copies import HostRing, Transfer
from livetalk_kernels.runtime.lanes import Lane

from ..avatar import Avatar
from ..color import match_color, reference_stats
from ..config import CHUNK_FRAMES, MOTION_FRAMES, NEW_FRAMES
from ..dit import DiT
from ..media.frame_rate import frame_rate
from ..sampler import denoise, timesteps
from ..vae import VAE
from .finite import FiniteGuard, Verdict
from .graphs import StreamCalls
from .stats import StageClock
from .team import Team
from .work import PublishedWork, Work, WorkOnce

MIN_FPS = CHUNK_FRAMES / 8  # the audio encoder sees 8 s, which must cover a chunk
MAX_FPS = 120

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a session generates.

    Attributes:
        seed: Seed of the noise.
        steps: Denoising steps per chunk.
        shift: Shift of the timesteps.
        color_correction: 0 (off) to 1: how far each frame's colours are shifted to the portrait's.
        fps: Video frames per second of audio, kept as a `Fraction`, see `frame_rate`; the model
            was trained at 25.
    """

    seed: int = 9999
    steps: int = 4
    shift: float = 5.0
    color_correction: float = 1.0
    fps: float | Fraction = Fraction(25)

    def __post_init__(self) -> None:
        """Reject values out of range."""
        timesteps(self.steps, self.shift)
        if not 0 <= self.color_correction <= 1:
            raise UserError(
                f"--color-correction {self.color_correction}: must be between 0 (off) and 1"
            )
        try:
            object.__setattr__(self, "fps", frame_rate(self.fps))
        except UserError as error:
            raise UserError(f"--fps: {error}") from None
        if not MIN_FPS <= self.fps <= MAX_FPS:
            raise UserError(
                f"--fps {float(self.fps):g}: must be between {MIN_FPS} and {MAX_FPS}; "
                "25 is what was trained"
            )
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be a whole number from 0 to 2^63 - 1")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; ``StreamOptions(**values)`` restores them, including `fps`."""
        return {**vars(self), "fps": float(self.fps)}


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
        lane: Lane | None = None,
        team: Team | None = None,
        calls: StreamCalls | None = None,
    ) -> None:
        """Prepare everything that depends only on the avatar.

        Args:
            dit: The transformer.
            vae: The VAE, with the same device and dtype.
            avatar: Avatar to animate.
            options: Options of the stream.
            reuse: False for the published schedule (`PublishedWork`).
            clock: Records the stages' times.
            lane: Where the decoder is warmed up; by default inline.
            team: Ranks that share the work: each has a generator and calls the same methods. By
                default just one.
            calls: The models' own methods by default, or CUDA graphs of them; not for the
                published schedule.
        """
        team = Team() if team is None else team
        self.dit, self.vae, self.device = dit, vae, dit.device
        self.clock = clock or StageClock(self.device)
        self.strength = options.color_correction
        self.schedule = timesteps(options.steps, options.shift)
        self.calls = calls or StreamCalls.of(dit, vae, cuda_graphs=False)
        self.guard = FiniteGuard(team.world)
        self.halo = team.halo(avatar.size)
        self._ring = HostRing(self.device, timeline=self.clock.timeline)
        self._generator = torch.Generator(self.device).manual_seed(options.seed)
        with torch.inference_mode(), self.clock.stage("prepare"):
            portrait = from_uint8(avatar.portrait.to(self.device), dit.dtype)
            self._colors = reference_stats(portrait[None, :, None])
            parts = dit, vae, avatar, self.schedule, self.clock
            self.work: Work
            if reuse:
                decode_step = self.calls.decode_step
                self.work = WorkOnce(*parts, lane=lane, halo=self.halo, decode_step=decode_step)
            else:
                self.work = PublishedWork(*parts)
            # The first frame of a causal encoding does not depend on the grey frames after it.
            motion = self.work.portrait_latents[:, :1]
        self.continue_from(motion, "prepare")

    @torch.inference_mode()
    def continue_from(self, motion: Tensor, stage: str = "warm decoder") -> None:
        """Let the next chunk continue frames other than those made last.

        Args:
            motion: [16, 1 or 2, h, w] latents of the frames.
            stage: Stage that its time is attributed to.
        """
        self.motion = motion
        self.work.know_motion(motion, stage)

    @torch.inference_mode()
    def latents(self, windows: Tensor, launched: Callable[[int], None] | None = None) -> Tensor:
        """Denoise one chunk.

        Args:
            windows: [1, 33, window, layers, channels] audio features of the chunk's frames.
            launched: See `chunk`.

        Returns:
            float32 [16, 9, h, w] normalised latents, including the motion latents in front.
        """
        windows = windows.to(self.device)
        self.guard.check("audio encoder", windows)
        self.work.begin_chunk(windows)

        def model(latent: Tensor, index: int) -> Tensor:
            with self.clock.stage("denoise"):
                inputs = self.work.inputs(index)
                flow = self.calls.step(latent[None].to(self.dit.dtype), **vars(inputs))[0]
            self.guard.check(f"DiT step {index + 1}", flow)
            if launched is not None:
                launched(index)
            return flow

        return denoise(model, self.schedule, self.motion, self._noise)

    def chunk(
        self,
        windows: Tensor,
        *,
        frames: int = NEW_FRAMES,
        last: bool = False,
        launched: Callable[[int], None] | None = None,
    ) -> Iterator[Frames]:
        """Generate one chunk; yield frames as they are decoded.

        On a GPU they are yielded once the next ones have been launched, so that it never waits for
        the consumer.

        Args:
            windows: [1, 33, window, layers, channels] audio features of the chunk's frames.
            frames: How many of the 28 new frames are needed.
            last: No chunk follows, so the next motion latents are not computed.
            launched: Called with the index of each step once it has been launched: to start
                concurrent work, or to stop.

        Yields:
            uint8 [n, H, W, 3] frames, in order; in a team only on rank 0.

        Raises:
            NumericsError: NaN or Inf arose, on any rank; the affected frames are not yielded.
        """
        latents = self.latents(windows, launched)[None].to(self.dit.dtype)
        tail: Tensor | None = None
        left = frames
        under_way: deque[tuple[Verdict, Transfer]] = deque()
        for decoded in self.work.decode(latents, frames):
            self.guard.check("VAE decoder", decoded)
            with torch.inference_mode(), self.clock.stage("colour"):
                colored = match_color(
                    decoded.clamp_(-1, 1), self._colors, self.strength, halo=self.halo
                )
                joined = colored if tail is None else torch.cat((tail, colored), dim=2)
                tail = joined[:, :, -MOTION_FRAMES:]
            with torch.inference_mode(), self.clock.stage("to host"):
                slice_THWC = to_uint8(colored[0])[:left]
                pixels = self.halo.collect(slice_THWC, (1, 2))
                verdict = self.guard.collect()
                sent = [verdict.finite] if pixels is None else [verdict.finite, pixels]
                under_way.append((verdict, self._ring.send(*sent)))
            left -= len(slice_THWC)
            yield from _arrived(under_way, leave=self._ring.ahead)
        if last:
            yield from _arrived(under_way)
            return
        assert tail is not None
        self.work.end_decoding()
        with torch.inference_mode():
            with self.clock.stage("encode"):
                motion = self.halo.gather(self.calls.encode(tail, halo=self.halo))[0]
            self.guard.check("VAE encoder", motion)
            self.continue_from(motion)
        yield from _arrived(under_way)
        self.guard.raise_if_bad()

    def _noise(self, first: bool) -> Tensor:
        dtype = self.dit.dtype if first else torch.float32
        return torch.randn(
            self.work.portrait_latents.shape,
            dtype=dtype,
            device=self.device,
            generator=self._generator,
        )


def _arrived(under_way: deque[tuple[Verdict, Transfer]], *, leave: int = 0) -> Iterator[Frames]:
    """Wait for the oldest frames until ``leave`` groups are in flight; yield finite ones."""
    while len(under_way) > leave:
        verdict, transfer = under_way.popleft()
        finite, *frames = transfer.arrays()
        verdict.raise_if_bad(finite)
        yield from (pixels.astype(np.uint8, copy=False) for pixels in frames)


def from_uint8(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert uint8 pixels of any shape to -1..1 in ``dtype``, in the published operation order."""
    return (pixels.to(dtype) / 255 - 0.5) * 2


def to_uint8(frames_CTHW: Tensor) -> Tensor:
    """Convert frames in -1..1, [3, T, H, W], to uint8 [T, H, W, 3], truncated as published."""
    scaled = ((frames_CTHW.permute(1, 2, 3, 0).float() + 1) / 2).clamp(0, 1) * 255
    return scaled.to(torch.uint8)
