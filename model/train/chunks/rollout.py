"""Retrospective self-correction: the student continues its own chunks, and learns in the last.

A chunk's motion latents are the student's own last frames: decoded, colour-corrected and
re-encoded, as in a stream. They cannot be passed on as latents, since the last two of a chunk hold
4 + 4 frames and the motion latents of the next 1 + 4.

Source: SoulX-FlashTalk (arXiv 2512.23379), multi-step retrospective self-correction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...color import ColorStats, match_color
from ...config import MOTION_FRAMES
from ...sampler import denoise
from ...vae import VAE, DecoderCache
from .flow import Flow, clean_of
from .network import Conditions

SEEN_LATENTS = 2  # the last ones, which contain the last five frames

HandOver = Callable[[Tensor], Tensor]
"""A chunk's latents [B, C, T, H, W] -> motion latents of the next, [B, C, m, H, W]."""

DrawNoise = Callable[[int, int, bool], Tensor]
"""Chunk, index of the draw in it, whether it is the chunk's first -> noise [B, C, T, H, W]."""


@dataclass(frozen=True, kw_only=True)
class ExitPoint:
    """The student's position before the one step that learns.

    Attributes:
        x: Noised latents, with motion restored, float32 [B, C, T, H, W].
        motion: The motion latents [B, C, m, H, W].
        timestep: The step's timestep, 0 to 1000, [B].
        given: The chunk's conditions.
    """

    x: Tensor
    motion: Tensor
    timestep: Tensor
    given: Conditions


@torch.no_grad()
def roll_out(
    student: Flow,
    chunks: Sequence[Conditions],
    start_BCTHW: Tensor,
    *,
    schedule: Tensor,
    exit_step: int,
    hand_over: HandOver,
    draw_noise: DrawNoise,
) -> ExitPoint:
    """Make consecutive chunks, the last one up to a step; a stream makes the same.

    Args:
        student: The generator.
        chunks: Conditions of chunks 1 to k.
        start_BCTHW: Motion latents of the first: the portrait's.
        schedule: [steps + 1] from `sampler.timesteps`, on the CPU.
        exit_step: j: the step of chunk k that is left to the caller.
        hand_over: Computes the motion latents that follow a chunk.
        draw_noise: Source of noise.

    Returns:
        The input of step j.
    """
    motion, last = start_BCTHW, len(chunks) - 1
    latents = start_BCTHW
    for number, given in enumerate(chunks):
        latents = _chunk(
            student, given, motion, schedule, draw_noise, number,
            until=exit_step if number == last else None,
        )  # fmt: skip
        if number < last:
            motion = hand_over(latents)
    timestep_B = schedule[exit_step].to(latents.device).repeat(len(latents))
    return ExitPoint(x=latents.float(), motion=motion, timestep=timestep_B, given=chunks[last])


def _chunk(
    student: Flow,
    given: Conditions,
    motion_BCTHW: Tensor,
    schedule: Tensor,
    draw_noise: DrawNoise,
    number: int,
    *,
    until: int | None,
) -> Tensor:
    """Denoise one chunk with the sampler's own loop."""
    draws = 0

    def noise(first: bool) -> Tensor:
        nonlocal draws
        draws += 1
        return draw_noise(number, draws - 1, first)

    def model(latents: Tensor, index: int) -> Tensor:
        timestep_B = schedule[index].to(latents.device).expand(len(latents))
        return student(latents, timestep_B, given)

    return denoise(model, schedule, motion_BCTHW, noise, until=until)


def take_step(student: Flow, at: ExitPoint) -> Tensor:
    """Compute ``x - t v``: the student's clean latents, the only source of its gradient."""
    return clean_of(at.x, student(at.x, at.timestep, at.given), at.timestep / 1000)


@torch.no_grad()
def through_pixels(
    vae: VAE, latents_BCTHW: Tensor, colors: Sequence[ColorStats], strength: float = 1.0
) -> Tensor:
    """Pass on motion through the last five frames, decoded, colour-corrected and re-encoded.

    Args:
        vae: The VAE.
        latents_BCTHW: A chunk's latents, including motion in front.
        colors: Colour statistics of each sample's portrait.
        strength: Strength of the colour correction, 0 to 1.

    Returns:
        [B, C, 2, H, W].
    """
    dtype = vae.conv1.weight.dtype
    latents_BCTHW = latents_BCTHW.to(dtype)
    cache = DecoderCache()
    vae.warm(latents_BCTHW[:, :, :-SEEN_LATENTS], cache)
    pieces = [
        vae.decode_step(piece, cache) for piece in latents_BCTHW[:, :, -SEEN_LATENTS:].split(1, 2)
    ]
    frames_BCTHW = torch.cat(pieces, dim=2)[:, :, -MOTION_FRAMES:]
    matched = [
        match_color(frames_BCTHW[index : index + 1], stats, strength)
        for index, stats in enumerate(colors)
    ]
    return vae.encode(torch.cat(matched))
