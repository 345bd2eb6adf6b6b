"""Flow matching: a straight line from clean latents to noise, and its velocity.

``x_t = (1 - t) clean + t noise``, ``v = noise - clean``, so ``clean = x_t - t v``. Motion latents,
the known first frames of a chunk, are exempt: they stay clean at every time.

Source: rectified flow (arXiv 2209.03003), with the shift of times of Stable Diffusion 3
(arXiv 2403.03206); the sampler's side of it is `sampler`.
"""

from typing import Protocol

import torch
from torch import Tensor

from .network import Conditions

SHIFT = 5.0  # towards noise, as in the sampler
SCORE_TIMES = 0.02, 0.98  # where scores are compared: nearer the ends they are uninformative


class Flow(Protocol):
    """A predictor of velocities: a `Network`, or in tests a formula."""

    def __call__(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        """Predict the velocity at latents x and timesteps 0 to 1000, [B, C, T, H, W] float32."""
        ...


def shifted(uniform: Tensor, shift: float = SHIFT) -> Tensor:
    """Compute times ``s u / (1 + (s - 1) u)`` from uniform numbers 0..1, any shape."""
    return shift * uniform / (1 + (shift - 1) * uniform)


def score_times(uniform: Tensor) -> Tensor:
    """Restrict `shifted` to the range in which scores are compared."""
    return shifted(uniform).clamp(*SCORE_TIMES)


def per_sample(value_B: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1, 1, 1]."""
    return value_B.view(-1, 1, 1, 1, 1)


def free_positions(known_B: Tensor, frames: int) -> Tensor:
    """Select the latent frames that are not motion.

    Args:
        known_B: int [B]: number of leading motion frames.
        frames: T.

    Returns:
        bool [B, 1, T, 1, 1].
    """
    frame_T = torch.arange(frames, device=known_B.device).view(1, 1, -1, 1, 1)
    return frame_T >= per_sample(known_B)


def add_noise(clean_BCTHW: Tensor, noise_BCTHW: Tensor, time_B: Tensor) -> Tensor:
    """Compute ``(1 - t) clean + t noise`` at each sample's time in 0..1."""
    time = per_sample(time_B)
    return (1 - time) * clean_BCTHW + time * noise_BCTHW


def velocity(clean_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
    """Compute ``noise - clean``, the same at all times."""
    return noise_BCTHW - clean_BCTHW


def clean_of(x_BCTHW: Tensor, velocity_BCTHW: Tensor, time_B: Tensor) -> Tensor:
    """Compute ``x - t v``: the clean latents implied by a velocity."""
    return x_BCTHW - per_sample(time_B) * velocity_BCTHW


def with_motion(x_BCTHW: Tensor, motion_BCTHW: Tensor) -> Tensor:
    """Replace the first m latent frames by the motion latents [B, C, m, H, W]."""
    known = motion_BCTHW.shape[2]
    return torch.cat((motion_BCTHW.to(x_BCTHW.dtype), x_BCTHW[:, :, known:]), dim=2)
