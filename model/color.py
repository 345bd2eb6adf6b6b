"""Colour correction: gives each frame the portrait's mean and standard deviation of colour.

Without it colours drift, since every chunk is conditioned on frames of the previous one. Statistics
are matched per frame and channel in CIE L*a*b* (Reinhard et al., "Color Transfer between Images",
2001; conversions after IEC 61966-2-1 and CIE 15 with the D65 white).

Layout legend: C = 3 channels, T frames, H rows, W columns.
"""

from dataclasses import dataclass

import torch

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.halo import WHOLE, Whole

# Linear sRGB -> XYZ, and back, with each XYZ axis divided by the D65 white (0.95047, 1, 1.08883).
_WHITE = (0.95047, 1.0, 1.08883)
_XYZ_FROM_RGB = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_RGB_FROM_XYZ = (
    (3.2404542, -1.5371385, -0.4985314),
    (-0.9692660, 1.8760108, 0.0415560),
    (0.0556434, -0.2040259, 1.0572252),
)
_TO_WHITE = tuple(
    tuple(value / white for value in row) for row, white in zip(_XYZ_FROM_RGB, _WHITE, strict=True)
)
_FROM_WHITE = tuple(
    tuple(value * white for value, white in zip(row, _WHITE, strict=True)) for row in _RGB_FROM_XYZ
)
_EPSILON = 0.008856  # where CIE's cube root becomes linear
_KAPPA = 903.3  # slope of the linear part

# A deviation below this is rounding in a flat channel (L* has steps of 8e-6 in float32), which must
# not be stretched to the portrait's.
_FLAT = 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class ColorStats:
    """Colour statistics of a picture.

    Attributes:
        mean: Mean of L*, a*, b* over all pixels, float32 [3].
        std: Population standard deviation of the same, float32 [3].
    """

    mean: torch.Tensor
    std: torch.Tensor


def reference_stats(image: torch.Tensor) -> ColorStats:
    """Compute the statistics that frames are matched to, once per portrait.

    Args:
        image: [3, H, W] or [1, 3, 1, H, W], sRGB in [-1, 1], any float dtype.

    Returns:
        Statistics on the image's device, always float32.

    Raises:
        UserError: The image has another shape.
    """
    if image.ndim == 3:
        image = image[None, :, None]
    if image.ndim != 5 or image.shape[:3] != (1, 3, 1):
        raise UserError(f"image: expected [3, H, W] or [1, 3, 1, H, W], got {list(image.shape)}")
    std_CT, mean_CT = _spread(_lab(image[0])[0])
    return ColorStats(mean=mean_CT[:, 0], std=std_CT[:, 0])


def to_lab(signed_CTHW: torch.Tensor) -> torch.Tensor:
    """Convert sRGB in [-1, 1] to L*, a*, b*, float32 [3, T, H, W]."""
    return _lab(signed_CTHW)[0]


def match_color(
    frames: torch.Tensor, reference: ColorStats, strength: float, *, halo: Whole = WHOLE
) -> torch.Tensor:
    """Give frames the reference's colour statistics.

    For every frame and every channel of L*a*b*::

        lab' = (lab - mean) * std_reference / std + mean_reference
        out = (1 - strength) * frame + strength * clamp(rgb(lab'), 0, 1)

    (the last line on [0, 1]). Frames are independent, so any split along T gives the same result.
    All arithmetic is float32, rounded once to the input's dtype.

    Args:
        frames: [1, 3, T, H, W], sRGB in [-1, 1], any float dtype, any strides.
        reference: Statistics of the portrait, on the same device.
        strength: 0 (off: ``frames`` itself is returned) to 1 (full).
        halo: The picture that the frames are a slice of; mean and std are taken over all slices.

    Returns:
        A tensor of the shape, dtype and device of ``frames``.

    Raises:
        UserError: The shape or the strength is invalid.
    """
    if frames.ndim != 5 or frames.shape[:2] != (1, 3):
        raise UserError(f"frames: expected [1, 3, T, H, W], got {list(frames.shape)}")
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"color correction: strength must be between 0 and 1, got {strength}")
    if strength == 0.0:
        return frames
    lab_CTHW, scratch_CTHW = _lab(frames[0])
    std_CT, mean_CT = halo.spread(*_spread(lab_CTHW))
    gain_CT = reference.std[:, None] / torch.where(std_CT < _FLAT, 1.0, std_CT)
    shift_CT = reference.mean[:, None] - mean_CT * gain_CT
    lab_CTHW.mul_(gain_CT[:, :, None, None]).add_(shift_CT[:, :, None, None])
    corrected_CTHW = _signed_rgb(lab_CTHW, scratch_CTHW)
    if strength < 1.0:
        corrected_CTHW.lerp_(frames[0].float(), 1.0 - strength)
    return corrected_CTHW[None].to(frames.dtype)


def _spread(lab_CTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute standard deviation (population) and mean of every channel and frame, [3, T] each."""
    return torch.std_mean(lab_CTHW, dim=(-2, -1), correction=0)


def _mix(x: torch.Tensor, matrix: tuple[tuple[float, ...], ...], out: torch.Tensor) -> torch.Tensor:
    """Multiply the 3 channels by a 3x3 matrix; elementwise, since a TF32 matmul loses 13 bits."""
    for row, target in zip(matrix, out, strict=True):
        torch.mul(x[0], row[0], out=target)
        target.add_(x[1], alpha=row[1]).add_(x[2], alpha=row[2])
    return out


# The two conversions alternate between two buffers: on a CPU a fresh tensor of this size costs more
# (page faults) than the arithmetic that fills it.


def _lab(signed_CTHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert sRGB in [-1, 1] to (L*a*b*, scratch): new float32 tensors of the input's shape."""
    a = torch.empty(signed_CTHW.shape, dtype=torch.float32, device=signed_CTHW.device)
    a.copy_(signed_CTHW).mul_(0.5).add_(0.5)
    b = a.add(0.055).div_(1.055).pow_(2.4)
    curved = a > 0.04045
    linear = torch.where(curved, b, a.div_(12.92), out=a)
    xyz = _mix(linear, _TO_WHITE, out=b).clamp_(1e-8, 1.0)
    torch.gt(xyz, _EPSILON, out=curved)
    line = torch.mul(xyz, _KAPPA / 116, out=a).add_(16 / 116)
    f = torch.where(curved, xyz.pow_(1 / 3), line, out=a)
    torch.mul(f[1], 116.0, out=b[0]).sub_(16.0)
    torch.sub(f[0], f[1], out=b[1]).mul_(500.0)
    torch.sub(f[1], f[2], out=b[2]).mul_(200.0)
    return b, a


def _signed_rgb(lab_CTHW: torch.Tensor, scratch_CTHW: torch.Tensor) -> torch.Tensor:
    """Convert L*a*b* to sRGB clamped to [-1, 1]; overwrites both arguments, one is the result."""
    a, b = lab_CTHW, scratch_CTHW
    torch.add(a[0], 16.0, out=b[1]).div_(116.0)
    torch.add(b[1], a[1], alpha=1 / 500, out=b[0])
    torch.sub(b[1], a[2], alpha=1 / 200, out=b[2])
    # For L* the published code tests L* > kappa * epsilon, for the others f^3 > epsilon. The
    # thresholds differ in the fifth digit, where cube and line meet: one test serves all three.
    cube = torch.pow(b, 3, out=a)
    curved = cube > _EPSILON
    xyz = torch.where(curved, cube, b.mul_(116 / _KAPPA).sub_(16 / _KAPPA), out=b)
    linear = _mix(xyz, _FROM_WHITE, out=a).clamp_(0.0, 1.0)
    torch.gt(linear, 0.0031308, out=curved)
    # 2.11 x - 1.11, written so that 1 stays 1 in float32: white is byte 255, as published, not 254.
    curve = torch.pow(linear, 1 / 2.4, out=b).sub_(1).mul_(2 * 1.055).add_(1)
    return torch.where(curved, curve, linear.mul_(2 * 12.92).sub_(1), out=a).clamp_(-1, 1)
