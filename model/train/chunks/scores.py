"""Two flows' estimates of the student's latents: the real score, with guidance, and the fake one.

Both see the same noised latents and predict the clean ones they came from; the difference of their
answers is the direction in which the student's distribution deviates from the teacher's.

Source: distribution matching distillation (arXiv 2311.18828, 2405.14867); two-step guidance is that
of MultiTalk (arXiv 2505.22647), the teacher's ancestor.
"""

import torch
from torch import Tensor

from ..config import Guidance, ScoreMotion
from .flow import Flow, add_noise, clean_of, with_motion
from .network import Conditions


def noised_for_scores(
    student_BCTHW: Tensor,
    motion_BCTHW: Tensor,
    noise_BCTHW: Tensor,
    time_B: Tensor,
    score_motion: ScoreMotion,
) -> Tensor:
    """Compute ``(1 - tau) student + tau noise``, with the motion latents restored, clean or noised.

    Args:
        student_BCTHW: The student's clean latents.
        motion_BCTHW: [B, C, m, H, W] the known first frames.
        noise_BCTHW: Standard normal numbers.
        time_B: tau in 0..1.
        score_motion: How to treat the motion latents.
    """
    if score_motion == "noised":
        held = with_motion(student_BCTHW, motion_BCTHW)
        return add_noise(held, noise_BCTHW, time_B)
    return with_motion(add_noise(student_BCTHW, noise_BCTHW, time_B), motion_BCTHW)


def guided_velocity(
    flow: Flow, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions, guidance: Guidance
) -> Tensor:
    """Compute ``v_0 + s_a (v_a - v_0) + s_t (v_at - v_a)``.

    ``v_0`` sees neither audio nor text, ``v_a`` the audio, ``v_at`` both. Without a text scale the
    last term is dropped, and ``v_a`` sees whatever text there is.

    Args:
        flow: The teacher.
        x_BCTHW: Noised latents.
        timestep_B: 0 to 1000.
        given: All conditions.
        guidance: s_a and s_t.
    """
    drop = torch.ones(len(x_BCTHW), dtype=torch.bool, device=x_BCTHW.device)
    keep, texts = ~drop, guidance.text is not None
    nothing = flow(x_BCTHW, timestep_B, given.drop(text=drop if texts else keep, audio=drop))
    heard = flow(x_BCTHW, timestep_B, given.drop(text=drop, audio=keep) if texts else given)
    guided = nothing + guidance.audio * (heard - nothing)
    if guidance.text is not None:
        guided = guided + guidance.text * (flow(x_BCTHW, timestep_B, given) - heard)
    return guided


@torch.no_grad()
def real_score(
    flow: Flow, x_BCTHW: Tensor, time_B: Tensor, given: Conditions, guidance: Guidance
) -> Tensor:
    """Compute r: the frozen teacher's estimate of the clean latents, with guidance; no gradient."""
    return clean_of(x_BCTHW, guided_velocity(flow, x_BCTHW, 1000 * time_B, given, guidance), time_B)


@torch.no_grad()
def fake_score(flow: Flow, x_BCTHW: Tensor, time_B: Tensor, given: Conditions) -> Tensor:
    """Compute f: the estimate by a flow of the student's own distribution; no gradient."""
    return clean_of(x_BCTHW, flow(x_BCTHW, 1000 * time_B, given), time_B)
