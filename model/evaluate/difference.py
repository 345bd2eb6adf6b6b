"""CIEDE2000: the perceived difference between two colours.

Source: G. Sharma, W. Wu, E. N. Dalal, "The CIEDE2000 color-difference formula: implementation
notes, supplementary test data, and mathematical observations" (Color Research and Application 30,
2005); names are those of its equations.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..color import to_lab
from ..stream.chunk import from_uint8

_FAR_CHROMA = 25.0**7
_TURN = 2 * math.pi
_ROUNDING = 1e-6


def lab_of(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert sRGB pixels, uint8 [..., 3], to L*, a*, b*, float32 [..., 3]."""
    signed = from_uint8(torch.tensor(pixels), torch.float32)
    return (
        to_lab(signed.reshape(1, 1, -1, 3).permute(3, 0, 1, 2))
        .permute(1, 2, 3, 0)
        .reshape(signed.shape)
    )


def ciede2000(one: Tensor, other: Tensor) -> Tensor:
    """Compute the difference of colours given as L*, a*, b*.

    Args:
        one: [..., 3], of any float dtype.
        other: The same, or of a shape that broadcasts to it.

    Returns:
        [...], 0 for equal colours; about 1 is just noticeable.
    """
    (l1, a1, b1), (l2, a2, b2) = one.unbind(-1), other.unbind(-1)
    # Step 1, (2) to (7): a is stretched where chroma is low.
    mean_chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * _share(mean_chroma)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.atan2(b, a) % _TURN for a, b in ((a1, b1), (a2, b2)))
    # Step 2, (8) to (11): the shorter way round; up to rounding, half a turn is no shorter way.
    turn = h2 - h1
    turn = turn - _TURN * turn.sign() * (turn.abs() > _TURN / 2 + _ROUNDING)
    d_hue = 2 * (c1 * c2).sqrt() * torch.sin(turn / 2)
    d_light, d_chroma = l2 - l1, c2 - c1
    # Step 3, (12) to (22): the mean hue is half a turn from the first; if one side has no chroma,
    # it is the other's.
    grey = c1 * c2 == 0
    mean_hue = torch.where(grey, torch.where(c1 == 0, h2, h1), h1 + turn / 2)
    chroma, light = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    weight = (
        1
        - 0.17 * torch.cos(mean_hue - math.radians(30))
        + 0.24 * torch.cos(2 * mean_hue)
        + 0.32 * torch.cos(3 * mean_hue + math.radians(6))
        - 0.20 * torch.cos(4 * mean_hue - math.radians(63))
    )
    degrees = torch.rad2deg(mean_hue) % 360
    rotated = math.radians(30) * torch.exp(-(((degrees - 275) / 25) ** 2))
    rotation = -torch.sin(2 * rotated) * 2 * _share(chroma)
    d_light = d_light / (1 + 0.015 * light / (20 + light).sqrt())
    d_chroma = d_chroma / (1 + 0.045 * chroma)
    d_hue = d_hue / (1 + 0.015 * chroma * weight)
    squares = d_light**2 + d_chroma**2 + d_hue**2 + rotation * d_chroma * d_hue
    return squares.clamp_min(0).sqrt()


def _share(chroma: Tensor) -> Tensor:
    seventh = chroma**7
    return (seventh / (seventh + _FAR_CHROMA)).sqrt()
