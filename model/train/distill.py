"""Stage 2: the student learns where its distribution misses the teacher's.

Source: SoulX-FlashTalk (arXiv 2512.23379), self-correcting bidirectional distillation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Distillation
from .flow import Flow, free_positions, score_times, with_motion
from .losses import flow_loss, matching_gradient, matching_loss, regression_loss
from .rollout import Brink, take_step
from .scores import fake_score, noised_for_scores, real_score


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a chunk and its past were in the data, for the oracle.

    Attributes:
        latents: [B, C, T, H, W].
        motion: [B, C, m, H, W] true motion latents.
    """

    latents: Tensor
    motion: Tensor


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One comparison of the student with the teacher.

    Attributes:
        loss: What the student descends, a scalar with its graph.
        latents: The student's clean latents, detached.
        gradient: g of every sample.
    """

    loss: Tensor
    latents: Tensor
    gradient: Tensor


def counted_positions(latents_BCTHW: Tensor, motion_BCTHW: Tensor, method: Distillation) -> Tensor:
    """The latent frames that the losses count: bool [B, 1, T, 1, 1]."""
    known = 0 if method.motion_loss else motion_BCTHW.shape[2]
    known_B = torch.full((len(latents_BCTHW),), known, device=latents_BCTHW.device)
    return free_positions(known_B, latents_BCTHW.shape[2])


def match(
    student: Flow,
    real: Flow,
    fake: Flow,
    at: Brink,
    *,
    noise: Tensor,
    uniform: Tensor,
    method: Distillation,
    truth: Truth | None = None,
) -> Matched:
    """Compare the student's step with the teacher, at one noise time.

    Args:
        student: The generator, with gradients.
        real: The frozen teacher.
        fake: The flow of the student's own distribution; it gets no gradient.
        at: Where the student stands.
        noise: Standard normal numbers [B, C, T, H, W].
        uniform: [1] or [B] in 0..1, which the time is made of.
        method: The switches.
        truth: Needed for the oracle's history and for the regression.
    """
    assert truth is not None or (method.history == "generated" and not method.regression)
    latents = take_step(student, at)
    counted = counted_positions(latents, at.motion, method)
    time_B = score_times(uniform).to(latents.device).expand(len(latents))

    def noised(motion: Tensor) -> Tensor:
        return noised_for_scores(latents.detach(), motion, noise, time_B, method.score_motion)

    past = at.motion if truth is None or method.history == "generated" else truth.motion
    r = real_score(real, noised(past), time_B, at.given, method.guidance)
    f = fake_score(fake, noised(at.motion), time_B, at.given)
    gradient = matching_gradient(latents, f, r, counted)
    loss = matching_loss(latents, gradient, counted)
    if method.regression and truth is not None:
        loss = loss + method.regression * regression_loss(latents, truth.latents, counted)
    return Matched(loss=loss, latents=latents.detach(), gradient=gradient)


def critic_loss(
    fake: Flow,
    latents_BCTHW: Tensor,
    at: Brink,
    *,
    noise: Tensor,
    uniform: Tensor,
    method: Distillation,
) -> Tensor:
    """Stage 1's loss on what the student makes, which the fake score descends; a scalar.

    Args:
        fake: The flow that learns.
        latents_BCTHW: The student's clean latents, detached.
        at: The step that they came from.
        noise: Standard normal numbers [B, C, T, H, W].
        uniform: [1] or [B] in 0..1, which the time is made of.
        method: The switches.
    """
    assert not latents_BCTHW.requires_grad, "the fake score teaches the student nothing here"
    time_B = score_times(uniform).to(latents_BCTHW.device).expand(len(latents_BCTHW))
    x = noised_for_scores(latents_BCTHW, at.motion, noise, time_B, method.score_motion)
    predicted = fake(x, 1000 * time_B, at.given)
    counted = counted_positions(latents_BCTHW, at.motion, method)
    return flow_loss(predicted, with_motion(latents_BCTHW, at.motion), noise, counted)
