"""Stage 2: the student learns where its distribution deviates from the teacher's.

Source: SoulX-FlashTalk (arXiv 2512.23379), self-correcting bidirectional distillation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Distillation
from ..draws import Draws
from .flow import Flow, free_positions, score_times, with_motion
from .losses import flow_loss, matching_gradient, matching_loss, regression_loss
from .network import Conditions
from .rollout import ExitPoint, HandOver, roll_out, take_step
from .scores import fake_score, noised_for_scores, real_score


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A chunk and its past as in the data, for the oracle.

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
        loss: Loss of the student, a scalar with its graph.
        latents: The student's clean latents, detached.
        gradient: g of every sample.
    """

    loss: Tensor
    latents: Tensor
    gradient: Tensor


def counted_positions(latents_BCTHW: Tensor, motion_BCTHW: Tensor, method: Distillation) -> Tensor:
    """Select the latent frames that the losses count: bool [B, 1, T, 1, 1]."""
    known = 0 if method.motion_loss else motion_BCTHW.shape[2]
    known_B = torch.full((len(latents_BCTHW),), known, device=latents_BCTHW.device)
    return free_positions(known_B, latents_BCTHW.shape[2])


def match(
    student: Flow,
    real: Flow,
    fake: Flow,
    at: ExitPoint,
    *,
    noise: Tensor,
    uniform: Tensor,
    method: Distillation,
    truth: Truth | None = None,
) -> Matched:
    """Compare the student's step with the teacher, at one noise level.

    Args:
        student: The generator, with gradients.
        real: The frozen teacher.
        fake: The flow of the student's own distribution; it gets no gradient.
        at: The student's position.
        noise: Standard normal numbers [B, C, T, H, W].
        uniform: [1] or [B] in 0..1, from which the time is computed.
        method: Choices of the method.
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
    at: ExitPoint,
    *,
    noise: Tensor,
    uniform: Tensor,
    method: Distillation,
) -> Tensor:
    """Compute stage 1's loss on the student's output, which trains the fake score; a scalar.

    Args:
        fake: The flow being trained.
        latents_BCTHW: The student's clean latents, detached.
        at: The step that they came from.
        noise: Standard normal numbers [B, C, T, H, W].
        uniform: [1] or [B] in 0..1, from which the time is computed.
        method: Choices of the method.
    """
    assert not latents_BCTHW.requires_grad, "the fake score teaches the student nothing here"
    time_B = score_times(uniform).to(latents_BCTHW.device).expand(len(latents_BCTHW))
    x = noised_for_scores(latents_BCTHW, at.motion, noise, time_B, method.score_motion)
    predicted = fake(x, 1000 * time_B, at.given)
    counted = counted_positions(latents_BCTHW, at.motion, method)
    return flow_loss(predicted, with_motion(latents_BCTHW, at.motion), noise, counted)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of streams.

    Attributes:
        samples: Their indices in the global batch.
        chunks: Conditions of chunks 1 to K.
        start: [B, C, m, H, W] motion latents of the first chunk.
        shape: Shape of one sample's latents, (C, T, H, W).
        hand_over: Computes the motion latents that follow a chunk.
        truth: Truth of chunks 1 to K, if the method needs it.
    """

    samples: Sequence[int]
    chunks: Sequence[Conditions]
    start: Tensor
    shape: Sequence[int]
    hand_over: HandOver
    truth: Sequence[Truth] | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a distillation starts from: networks and choices that stay the same.

    Attributes:
        real: The frozen teacher.
        schedule: [steps + 1] timesteps of the sampler, on the CPU.
        method: Choices of the method.
        draws: The run's randomness.
    """

    real: Flow
    schedule: Tensor
    method: Distillation
    draws: Draws


@dataclass(frozen=True, kw_only=True)
class StudentTurn:
    """Result of a student's turn.

    Attributes:
        loss: Its loss, a scalar with its graph.
        latents: Its clean latents, detached.
        at: Its position before the step.
        chunk: Number of the chunk, from 1.
    """

    loss: Tensor
    latents: Tensor
    at: ExitPoint
    chunk: int


def stand(
    student: Flow, setup: Setup, batch: Batch, purpose: str, *, step: int, micro: int = 0
) -> tuple[ExitPoint, int]:
    """Roll out to a randomly drawn step of a drawn chunk.

    Args:
        student: The generator.
        setup: What the distillation starts from.
        batch: The streams.
        purpose: Purpose; another word gives other draws.
        step: Index of the update.
        micro: Index of the micro-batch in it.

    Returns:
        The student's position, and the index of the chunk.
    """
    below, steps = setup.draws.below, len(setup.schedule) - 1
    chunk = below(setup.method.chunks, f"{purpose} chunk", step=step, micro=micro)
    at = roll_out(
        student,
        batch.chunks[: chunk + 1],
        batch.start,
        schedule=setup.schedule,
        exit_step=below(steps, f"{purpose} exit", step=step, micro=micro),
        hand_over=batch.hand_over,
        draw_noise=lambda number, draw, first: drawn_noise(
            setup, batch, f"{purpose} rollout {number} {draw}", step
        ),
    )
    return at, chunk


def student_turn(
    student: Flow, fake: Flow, setup: Setup, batch: Batch, *, step: int, micro: int = 0
) -> StudentTurn:
    """Compute the student's loss, which depends only on the arguments."""
    at, chunk = stand(student, setup, batch, "student", step=step, micro=micro)
    matched = match(
        student,
        setup.real,
        fake,
        at,
        noise=drawn_noise(setup, batch, "student score", step),
        uniform=setup.draws.shared_uniform("student time", step=step, micro=micro),
        method=setup.method,
        truth=batch.truth[chunk] if batch.truth else None,
    )
    return StudentTurn(loss=matched.loss, latents=matched.latents, at=at, chunk=chunk + 1)


def critic_turn(
    student: Flow, fake: Flow, setup: Setup, batch: Batch, *, step: int, micro: int = 0
) -> Tensor:
    """Compute the fake score's loss on a fresh rollout; a scalar with its graph."""
    at, _ = stand(student, setup, batch, "critic", step=step, micro=micro)
    with torch.no_grad():
        latents = take_step(student, at)
    return critic_loss(
        fake,
        latents,
        at,
        noise=drawn_noise(setup, batch, "critic score", step),
        uniform=setup.draws.shared_uniform("critic time", step=step, micro=micro),
        method=setup.method,
    )


def drawn_noise(setup: Setup, batch: Batch, purpose: str, step: int) -> Tensor:
    """Draw noise for the batch's samples on its device."""
    noise = setup.draws.noise(purpose, batch.shape, step=step, samples=batch.samples)
    return noise.to(batch.start.device)
