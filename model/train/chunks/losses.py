"""The losses of both stages; ``mean_N`` is the mean over the positions that count, per sample."""

import torch
from torch import Tensor

from .flow import velocity

FLOOR = 1e-6  # added to the divisor of a gradient


def mean_over(values_BCTHW: Tensor, counted: Tensor) -> Tensor:
    """Average over the positions that count, float32 [B]; independent of the other samples.

    Args:
        values_BCTHW: Any values.
        counted: bool [B, 1, T, 1, 1].
    """
    values, weight = values_BCTHW.float(), counted.float()
    _, channels, _, rows, columns = values.shape
    count_B = weight.sum(dim=(1, 2, 3, 4)) * (channels * rows * columns)
    return (values * weight).sum(dim=(1, 2, 3, 4)) / count_B


def flow_loss(
    predicted_BCTHW: Tensor,
    clean_BCTHW: Tensor,
    noise_BCTHW: Tensor,
    counted: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute ``mean_N |v - (noise - clean)|^2``, the loss of stage 1 and the fake score; a scalar.

    Args:
        predicted_BCTHW: v at the noised latents.
        clean_BCTHW: Clean latents.
        noise_BCTHW: Noise that was added.
        counted: bool [B, 1, T, 1, 1].
        weight: [B, 1, T, H, W]: weight of each position; by default uniform.
    """
    error = (predicted_BCTHW - velocity(clean_BCTHW, noise_BCTHW)).square()
    if weight is not None:
        error = error * (weight / mean_over(weight, counted).view(-1, 1, 1, 1, 1))
    return mean_over(error, counted).mean()


@torch.no_grad()
def matching_gradient(
    student_BCTHW: Tensor, fake_BCTHW: Tensor, real_BCTHW: Tensor, counted: Tensor
) -> Tensor:
    """Compute ``g = (f - r) / (mean_N |student - r| + 1e-6)`` for each sample, float32.

    Up to its weight over noise levels this is the gradient of KL(student, teacher) with respect to
    the student's latents, which without the division would be ``((1 - tau) / tau)^2 (f - r)``.

    Source: arXiv 2311.18828, equations 7 and 8.
    """
    real = real_BCTHW.float()
    size_B = mean_over((student_BCTHW.float() - real).abs(), counted)
    return (fake_BCTHW.float() - real) / (size_B + FLOOR).view(-1, 1, 1, 1, 1)


def matching_loss(student_BCTHW: Tensor, gradient_BCTHW: Tensor, counted: Tensor) -> Tensor:
    """Compute ``1/2 mean_N |student - sg(student - g)|^2``; a scalar whose gradient is g / N.

    Args:
        student_BCTHW: The student's latents, with their graph.
        gradient_BCTHW: g, from `matching_gradient`.
        counted: bool [B, 1, T, 1, 1].
    """
    student = student_BCTHW.float()
    # The same difference, but g is not rounded to the larger student's precision.
    difference = (student - student.detach()) + gradient_BCTHW
    return 0.5 * mean_over(difference.square(), counted).mean()


def regression_loss(student_BCTHW: Tensor, truth_BCTHW: Tensor, counted: Tensor) -> Tensor:
    """Compute ``mean_N |student - truth|^2``, used with the oracle's history; a scalar."""
    return mean_over((student_BCTHW - truth_BCTHW).square(), counted).mean()
