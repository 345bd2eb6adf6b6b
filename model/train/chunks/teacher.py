"""Stage 1: flow matching on chunks whose first frames are given.

The whole chunk has one time; the motion latents enter clean, or for some samples with a little
noise, so that the network does not trust them blindly. To permit guidance with the same network,
some samples have no text, or neither text nor audio.

Source: SoulX-FlashTalk (arXiv 2512.23379), latency-aware spatiotemporal adaptation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import MOTION_LATENTS
from ..config import Teaching
from ..draws import Draws
from .flow import Flow, add_noise, free_positions, shifted
from .losses import flow_loss
from .network import Conditions

MOTION_TIME = 0.4
"""Maximum noise of motion latents: the time of noised ones."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Random draws for a batch of chunks.

    Attributes:
        noise: [B, C, T, H, W].
        time: [B] in 0..1.
        known: int64 [B]: number of motion latents.
        motion_time: [B] in 0..1, time of the motion latents.
        no_text: bool [B].
        no_audio: bool [B].
    """

    noise: Tensor
    time: Tensor
    known: Tensor
    motion_time: Tensor
    no_text: Tensor
    no_audio: Tensor


def draw_lesson(
    draws: Draws,
    shape: Sequence[int],
    *,
    step: int,
    samples: Sequence[int],
    teaching: Teaching,
    schedule: Tensor,
) -> Lesson:
    """Draw noise, times, motion and what is dropped, by the samples' indices.

    Args:
        draws: The run's randomness.
        shape: Shape of one sample's latents.
        step: Index of the update.
        samples: Indices in the global batch.
        teaching: Fractions of the samples.
        schedule: [steps + 1] timesteps of the sampler, the last one 0.
    """

    def uniform(purpose: str) -> Tensor:
        return draws.uniform(f"teacher {purpose}", step=step, samples=samples)

    steps = len(schedule) - 1
    anchors = (schedule[:-1] / 1000)[(uniform("anchor") * steps).long().clamp(max=steps - 1)]
    anchored, left_out = uniform("anchored") < teaching.anchored, uniform("left out")
    return Lesson(
        noise=draws.noise("teacher noise", shape, step=step, samples=samples),
        time=torch.where(anchored, anchors, shifted(uniform("time"))),
        known=torch.where(uniform("motion") < teaching.long_motion, MOTION_LATENTS, 1),
        motion_time=torch.where(
            uniform("noised") < teaching.noised_motion, MOTION_TIME * uniform("motion time"), 0.0
        ),
        no_text=left_out < teaching.drop_both + teaching.drop_text,
        no_audio=left_out < teaching.drop_both,
    )


def teacher_loss(
    flow: Flow,
    clean_BCTHW: Tensor,
    given: Conditions,
    lesson: Lesson,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute ``mean_N |v(x_t, t, c) - (noise - clean)|^2`` over all but motion; a scalar.

    Args:
        flow: The network.
        clean_BCTHW: Latents of whole chunks.
        given: Their conditions.
        lesson: Random draws for them, on their device.
        weight: [B, 1, T, H, W]: weight of each position; by default uniform.
    """
    free = free_positions(lesson.known, clean_BCTHW.shape[2])
    noised, motion = (
        add_noise(clean_BCTHW, lesson.noise, time) for time in (lesson.time, lesson.motion_time)
    )
    x = torch.where(free, noised, motion)
    seen = given.drop(text=lesson.no_text, audio=lesson.no_audio)
    return flow_loss(flow(x, 1000 * lesson.time, seen), clean_BCTHW, lesson.noise, free, weight)
