"""What the VAE descends: how far the pictures that it gives back are from those that it got."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.painter import EYE_X, EYE_Y, MOUTH_Y, NEARER

EDGES, MOTION, COLOUR, SQUARES = 0.5, 0.5, 1.0, 1.0
"""Factors beside the plain difference, which has 1."""
CONTRAST = 0.5
"""Factor of `contrast_loss`, where it is wanted."""
FEATURES = 4.0
"""What a difference at the mouth or an eye counts more than elsewhere, at most."""
COARSE = 8
"""Side of the squares of pixels whose mean colour is compared."""
_FAINT = 1e-4  # mean square below which contrast is none
_PLACES = ((0.0, MOUTH_Y, 0.15, 0.12), (-EYE_X, EYE_Y, 0.1, 0.08), (EYE_X, EYE_Y, 0.1, 0.08))
# x and y of mouth and eyes, and how far their weight reaches, in parts of the shorter side
_MOVES = "sway_x", "sway_y"


def vae_loss(made_BCTHW: Tensor, true_BCTHW: Tensor, weight_BTHW: Tensor) -> Tensor:
    """Differences of pixels, edges, motion and coarse colour, a scalar.

    Absolute values, so that small errors count, and squares, since a few pixels at moving edges
    make most of the mean square error. The coarse colours keep large areas from drifting, which
    no pixel shows; differences in time keep still areas from flickering.

    Args:
        made_BCTHW: Decoded pictures, -1 to 1, not clamped.
        true_BCTHW: The pictures that were coded.
        weight_BTHW: What a pixel counts; see `face_weight`.
    """
    error, weight = made_BCTHW - true_BCTHW, weight_BTHW[:, None]
    pixels = ((error.abs() + SQUARES * error.square()) * weight).mean()
    edges = sum(
        (error.diff(dim=axis).abs() * weight.narrow(axis, 1, weight.shape[axis] - 1)).mean()
        for axis in (3, 4)
    )
    coarse = F.avg_pool3d(error, (1, COARSE, COARSE)).abs().mean()
    loss = pixels + EDGES * edges + COLOUR * coarse
    if error.shape[2] > 1:
        loss = loss + MOTION * (error.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    return loss


def contrast_loss(made_BCTHW: Tensor, true_BCTHW: Tensor, weight_BTHW: Tensor) -> Tensor:
    """Difference of how much neighbouring pixels differ, in squares of `COARSE` pixels; a scalar.

    An edge that is not quite certain is drawn soft by `vae_loss`, which is nearest to all that it
    could be. This wants it as sharp as it was.

    Args:
        made_BCTHW: See `vae_loss`.
        true_BCTHW: Likewise.
        weight_BTHW: Likewise.
    """
    made, true = (_contrast(pictures) for pictures in (made_BCTHW, true_BCTHW))
    weight_BTHW = F.avg_pool2d(weight_BTHW, COARSE)
    return ((made - true).abs() * weight_BTHW).mean()


def _contrast(pictures_BCTHW: Tensor) -> Tensor:
    """Root mean square of the differences between neighbours, [B, T, H/8, W/8]."""
    squares = [
        F.pad(pictures_BCTHW.diff(dim=axis).square().mean(1), pad)
        for axis, pad in ((3, (0, 0, 0, 1)), (4, (0, 1)))
    ]
    return (F.avg_pool2d(squares[0] + squares[1], COARSE) + _FAINT).sqrt()


def face_weight(truth_BTK: Tensor, names: Sequence[str], size: tuple[int, int]) -> Tensor:
    """1, and more around a drawn face's mouth and eyes, float32 [B, T, H, W].

    Half of a VAE's mean square error is in those few pixels, and all that a face says.

    Args:
        truth_BTK: What is true of each frame.
        names: Of its columns; without the head's place, as of videos, all pixels count the same.
        size: Pictures' (H, W).
    """
    (height, width), shape = size, truth_BTK.shape[:2]
    if not set(_MOVES) <= set(names):
        return torch.ones(*shape, height, width)
    moved_x, moved_y = (
        truth_BTK[..., names.index(name), None, None] * (1 + float(nearer))
        for name, nearer in zip(_MOVES, NEARER, strict=True)
    )
    rows = ((torch.arange(height) + 0.5 - height / 2) / min(size)).view(1, 1, -1, 1)
    columns = ((torch.arange(width) + 0.5 - width / 2) / min(size)).view(1, 1, 1, -1)
    near = torch.zeros(*shape, height, width)
    for x, y, reach_x, reach_y in _PLACES:
        far = ((columns - moved_x - x) / reach_x).square() + (
            (rows - moved_y - y) / reach_y
        ).square()
        near = torch.maximum(near, torch.exp(-far))
    return 1 + (FEATURES - 1) * near
