"""The few-step flow sampler of a distilled model.

Source: SoulX-FlashTalk (arXiv 2512.23379); re-noising after every step as in self-forcing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError

MAX_STEPS = 1000
# The distilled model was trained at these; for other counts they are evenly spaced.
_TRAINED = {2: (1000.0, 500.0), 4: (1000.0, 750.0, 500.0, 250.0)}


def timesteps(steps: int, shift: float) -> Tensor:
    """Compute shifted timesteps with a final 0.

    ``t' = s t / (1 + (s - 1) t)`` on t/1000; t = 1000, 750, 500, 250 for 4 steps, 1000, 500 for 2,
    else evenly spaced from 1000 to 1.

    Args:
        steps: Denoising steps, at least 1.
        shift: s, from 0.001 to 1000; larger values spend more steps on strong noise.

    Returns:
        float32 [steps + 1], 1000 down to 0.

    Raises:
        UserError: ``steps`` or ``shift`` is out of range.
    """
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise UserError(
            f"--steps {steps}: must be a whole number from 1 to {MAX_STEPS}; 4 is what was trained"
        )
    if not 1e-3 <= shift <= 1e3:
        raise UserError(f"--shift {shift}: must be between 0.001 and 1000; 5 is what was trained")
    if steps in _TRAINED:
        plain = torch.tensor(_TRAINED[steps])
    else:
        plain = torch.linspace(1000, 1, steps, dtype=torch.float32)
    t = torch.cat((plain, torch.zeros(1))) / 1000
    return shift * t / (1 + (shift - 1) * t) * 1000


def denoise(
    model: Callable[[Tensor, int], Tensor],
    schedule: Tensor,
    motion: Tensor,
    draw_noise: Callable[[bool], Tensor],
    *,
    until: int | None = None,
) -> Tensor:
    """Denoise one chunk.

    ``x0 = x - t model(x, t)``, then ``x <- (1 - t') x0 + t' noise`` with t, t' in 0..1; the motion
    latents are restored after every step.

    Args:
        model: (latent [16, T, h, w], step index) -> raw output of the same shape, float32. In
            training all of them have a leading batch dimension.
        schedule: [steps + 1] from `timesteps`, on the CPU.
        motion: [16, 1 or 2, h, w] known first latent frames.
        draw_noise: Called with True for the first draw (in the model's dtype), False for a
            float32 one. It is also called after the last step, with noise of factor 0, because the
            published random number stream continues over the chunks.
        until: Stop before this step; None to run them all.

    Returns:
        float32 [16, T, h, w] clean latents, including motion; or the input of step ``until``.
    """
    known = motion.shape[-3]
    latent = draw_noise(True)
    latent[..., :known, :, :] = motion.to(latent.dtype)
    for index in range(len(schedule) - 1 if until is None else until):
        now, after = (float(schedule[index + offset]) / 1000 for offset in (0, 1))
        clean = latent - now * model(latent, index)
        latent = (1 - after) * clean + after * draw_noise(False)
        latent[..., :known, :, :] = motion.to(latent.dtype)
    return latent
