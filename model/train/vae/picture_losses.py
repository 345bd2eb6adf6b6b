"""The VAE's losses: how far the reconstructed pictures are from the originals."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces.painter import EYE_X, EYE_Y, MOUTH_Y, NEARER

EDGES, MOTION, COLOUR, SQUARES = 0.5, 0.5, 1.0, 1.0
"""Factors relative to the plain difference, which has 1."""
CONTRAST = 2.0
"""Factor of `contrast_loss`, if used."""
FEATURES = 4.0
"""Maximum weight of a difference at the mouth or an eye, relative to elsewhere."""
COARSE = 8
"""Side of the pixel blocks whose mean colour is compared."""
_FAINT = 1e-4  # mean square below which there is no contrast
_PLACES = ((0.0, MOUTH_Y, 0.15, 0.12), (-EYE_X, EYE_Y, 0.1, 0.08), (EYE_X, EYE_Y, 0.1, 0.08))
# x and y of mouth and eyes, and the reach of their weight, as fractions of the shorter side
_MOVES = "sway_x", "sway_y"


def vae_loss(made_BCTHW: Tensor, true_BCTHW: Tensor, weight_BTHW: Tensor) -> Tensor:
    """Combine differences of pixels, edges, motion and coarse colour; a scalar.

    Absolute values, so that small errors count, and squares, since a few pixels at moving edges
    dominate the mean square error. Coarse colours keep large areas from drifting, which single
    pixels do not reveal; temporal differences keep still areas from flickering.

    Args:
        made_BCTHW: Decoded pictures, -1 to 1, not clamped.
        true_BCTHW: The original pictures.
        weight_BTHW: Weight of each pixel; see `face_weight`.
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
    """Compare the local contrast between neighbouring pixels, per block of `COARSE`; a scalar.

    `vae_loss` draws an uncertain edge soft, closest to everything it could be. This loss requires
    the original sharpness.

    Args:
        made_BCTHW: See `vae_loss`.
        true_BCTHW: See `vae_loss`.
        weight_BTHW: See `vae_loss`.
    """
    made, true = (_contrast(pictures) for pictures in (made_BCTHW, true_BCTHW))
    weight_BTHW = F.avg_pool2d(weight_BTHW, COARSE)
    return ((made - true).abs() * weight_BTHW).mean()


def _contrast(pictures_BCTHW: Tensor) -> Tensor:
    """Compute the root mean square difference between neighbours, [B, T, H/8, W/8]."""
    squares = [
        F.pad(pictures_BCTHW.diff(dim=axis).square().mean(1), pad)
        for axis, pad in ((3, (0, 0, 0, 1)), (4, (0, 1)))
    ]
    return (F.avg_pool2d(squares[0] + squares[1], COARSE) + _FAINT).sqrt()


def face_weight(truth_BTK: Tensor, names: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Return 1, and more around a drawn face's mouth and eyes, float32 [B, T, H, W].

    Half of a VAE's mean square error is in those few pixels, and all that a face expresses.

    Args:
        truth_BTK: Truth of each frame.
        names: Its columns; without the head's position, as for videos, all pixels count the same.
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
