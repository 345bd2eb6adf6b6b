"""Diagnostics of the fake score, whose loss alone is uninformative.

The student descends the difference of two answers. If the fake score lags behind the student, the
difference points to where the student was; if it is all noise, it points nowhere.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..config import Distillation
from .distill import Batch, Setup, StudentTurn, counted_positions, critic_loss, drawn_noise
from .flow import Flow, score_times
from .losses import mean_over
from .network import Conditions
from .rollout import ExitPoint
from .scores import fake_score, noised_for_scores, real_score

EVERY = 5
"""Turns of the student from one look to the next; a look costs about a third of a turn."""


def look(
    fake: Flow,
    setup: Setup,
    batch: Batch,
    turn: StudentTurn,
    kept: MutableMapping[str, Tensor],
    *,
    step: int,
    micro: int = 0,
) -> dict[str, float]:
    """Measure `agreement` at intervals, and `lag` from the second time; no weight changes.

    Args:
        fake: The fake score.
        setup: What the distillation starts from.
        batch: The streams.
        turn: Result of the student's turn.
        kept: Keeps the student's latents until the next measurement, `State.samples`.
        step: Index of the update.
        micro: Index of the micro-batch in it.

    Returns:
        Name -> number; empty between measurements.
    """
    if (step + 1) // setup.method.generator_every % EVERY:
        return {}
    fresh = turn.latents, turn.at
    noises = [drawn_noise(setup, batch, f"health {word}", step) for word in ("one", "two")]
    uniform = setup.draws.shared_uniform("health time", step=step, micro=micro)
    given: dict[str, Any] = {"uniform": uniform, "method": setup.method}
    alike = agreement(setup.real, fake, *fresh, noises=(noises[0], noises[1]), **given)
    found = {"agreement": alike}
    place = f"health/{micro}/"
    older = {
        name.removeprefix(place): value.to(turn.latents.device)
        for name, value in kept.items()
        if name.startswith(place)
    }
    if older:
        found["lag"] = lag(fake, fresh, _unpacked(older), noise=noises[0], **given)
    kept.update({place + name: value for name, value in _packed(*fresh).items()})
    return found


def _packed(latents: Tensor, at: ExitPoint) -> dict[str, Tensor]:
    own = {name: value for name, value in vars(at).items() if name != "given"}
    return {"latents": latents, **own, **vars(at.given)}


def _unpacked(tensors: Mapping[str, Tensor]) -> tuple[Tensor, ExitPoint]:
    rest = dict(tensors)
    latents = rest.pop("latents")
    given = Conditions(**{field.name: rest.pop(field.name) for field in fields(Conditions)})
    return latents, ExitPoint(given=given, **rest)


def cosine(a_BCTHW: Tensor, b_BCTHW: Tensor, counted: Tensor) -> Tensor:
    """Compute the cosine between two directions over the positions that count, float32 [B]."""
    dot, a, b = (
        mean_over(product, counted)
        for product in (a_BCTHW * b_BCTHW, a_BCTHW.square(), b_BCTHW.square())
    )
    return dot / (a * b).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


@torch.no_grad()
def lag(
    fake: Flow,
    fresh: tuple[Tensor, ExitPoint],
    older: tuple[Tensor, ExitPoint],
    *,
    noise: Tensor,
    uniform: Tensor,
    method: Distillation,
) -> float:
    """Divide the loss on the student's present output by that on its earlier output.

    About 1 if the fake score keeps up; above it if it still fits the older output better.

    Args:
        fake: The fake score.
        fresh: Present clean latents and where they came from.
        older: The same from some updates ago, for as many samples.
        noise: Standard normal numbers [B, C, T, H, W], the same for both.
        uniform: [1] in 0..1, from which the time is computed.
        method: Choices of the method.
    """
    now, before = (
        critic_loss(fake, latents, at, noise=noise, uniform=uniform, method=method)
        for latents, at in (fresh, older)
    )
    return float(now / before)


@torch.no_grad()
def agreement(
    real: Flow,
    fake: Flow,
    latents_BCTHW: Tensor,
    at: ExitPoint,
    *,
    noises: tuple[Tensor, Tensor],
    uniform: Tensor,
    method: Distillation,
) -> float:
    """Compute the cosine between ``f - r`` for two noises of equal latents and time, batch mean.

    Near 1: both noises agree on where the student should go. Near 0: it follows noise, or there is
    nothing left to learn.

    Args:
        real: The frozen teacher.
        fake: The fake score.
        latents_BCTHW: The student's clean latents.
        at: The step that they came from.
        noises: Two tensors of standard normal numbers [B, C, T, H, W].
        uniform: [1] in 0..1, from which the time is computed.
        method: Choices of the method.
    """
    time_B = score_times(uniform).to(latents_BCTHW.device).expand(len(latents_BCTHW))

    def direction(noise: Tensor) -> Tensor:
        x = noised_for_scores(latents_BCTHW, at.motion, noise, time_B, method.score_motion)
        r = real_score(real, x, time_B, at.given, method.guidance)
        return fake_score(fake, x, time_B, at.given) - r

    first, second = map(direction, noises)
    counted = counted_positions(latents_BCTHW, at.motion, method)
    return float(cosine(first, second, counted).mean())
