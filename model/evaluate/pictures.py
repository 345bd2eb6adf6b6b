"""Picture metrics: closeness to the truth, sharpness, colour, stillness.

Pictures are uint8 [T, H, W, 3]; differences are in levels of 0..255.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..train.faces.identity import Identity
from ..train.faces.liveliness import SWAY
from ..train.faces.painter import MOUTH_Y, Painter, Pose, picture_points

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.uint8]

MOST_DB = 60.0
"""Value for equal pictures, whose ratio is unbounded."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_FACE = (0.25, -0.25, 0.33)  # fractions of the shorter side: half the width, top, bottom
_MOUTH = (0.17, 0.12)  # half of a box that contains the mouth wherever the head may be
_CLOSE = 2  # levels by which a still pixel may differ


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Where to look in pictures of one person, bool [H, W] each.

    Attributes:
        face: Box around the face.
        mouth: Box around the mouth.
        still: What no pose changes: the wall, and the inner part of the clothes.
    """

    face: NDArray[np.bool_]
    mouth: NDArray[np.bool_]
    still: NDArray[np.bool_]

    @classmethod
    def of(cls, person: Identity, size: tuple[int, int]) -> "Regions":
        """Draw the person in the extreme poses."""
        x, y = np.moveaxis(picture_points(size), -1, 0)
        half, top, bottom = _FACE
        aside, above = _MOUTH
        right, down, turn = (1.3 * limit for limit in SWAY)
        painter = Painter(person, size)
        drawn = np.stack(
            [
                painter.draw(Pose(sway_x=a * right, sway_y=b * down, roll=c * turn))
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                for c in (-1, 0, 1)
            ]
        ).astype(int)
        return cls(
            face=(np.abs(x) < half) & (y > top) & (y < bottom),
            mouth=(np.abs(x) < aside) & (np.abs(y - MOUTH_Y) < above),
            still=(np.ptp(drawn, axis=0) <= _CLOSE).all(axis=-1),
        )


def decibels(
    made_THWC: Pixels, true_THWC: Pixels, where: NDArray[np.bool_] | None = None
) -> Floats:
    """Compute the peak signal-to-noise ratio of each picture, in dB, [T].

    Args:
        made_THWC: Pictures.
        true_THWC: Ground truth.
        where: Pixels that count, [H, W]; by default all.
    """
    squares = (made_THWC.astype(np.float32) - true_THWC.astype(np.float32)) ** 2
    inside = squares if where is None else squares[:, where]
    error_T = inside.reshape(len(squares), -1).mean(axis=1, dtype=np.float64)
    return np.minimum(10 * np.log10(255**2 / np.maximum(error_T, 1e-9)), MOST_DB)


def edges(pictures_THWC: Pixels, where: NDArray[np.bool_]) -> Floats:
    """Compute the gradient energy of each picture's lightness after a 3x3 median, [T].

    The median removes noise, which would pass for sharpness.
    """
    grey = median3(np.round(pictures_THWC @ _LUMA).astype(np.uint8)).astype(np.float32)
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:], right[:, :, 1:] = np.diff(grey, axis=1), np.diff(grey, axis=2)
    energy: Floats = (down**2 + right**2)[:, where].mean(axis=1, dtype=np.float64)
    return energy


def median3(grey_THW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the median of each pixel and its eight neighbours; edges are repeated."""
    height, width = grey_THW.shape[1:]
    padded = np.pad(grey_THW, ((0, 0), (1, 1), (1, 1)), mode="edge")
    near = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    # Sort columns; then the median is that of the largest minimum, the middle median and the
    # smallest maximum among them.
    columns = [_sorted3(*near[n::3]) for n in range(3)]
    least, middle, greatest = zip(*columns, strict=True)
    low = np.maximum(np.maximum(least[0], least[1]), least[2])
    high = np.minimum(np.minimum(greatest[0], greatest[1]), greatest[2])
    return _sorted3(low, _sorted3(*middle)[1], high)[1]


def _sorted3(a: Pixels, b: Pixels, c: Pixels) -> tuple[Pixels, Pixels, Pixels]:
    a, b = np.minimum(a, b), np.maximum(a, b)
    b, c = np.minimum(b, c), np.maximum(b, c)
    a, b = np.minimum(a, b), np.maximum(a, b)
    return a, b, c


def difference(
    one_THWC: Pixels, other_THWC: Pixels, where: NDArray[np.bool_] | None = None
) -> Floats:
    """Compute the mean absolute difference of pictures, in levels, [T]; shapes may broadcast."""
    away = np.abs(one_THWC.astype(np.int16) - other_THWC.astype(np.int16))
    inside = away if where is None else away[:, where]
    return inside.reshape(len(away), -1).mean(axis=1, dtype=np.float64)


def seam_ratio(motion_T: Floats, chunk: int) -> Floats:
    """Compare the jump into each chunk with the usual one near it, [K]; 1 means no seam.

    Args:
        motion_T: `difference` of each frame from the one before.
        chunk: Frames per chunk.

    Returns:
        NaN for the first chunk, which has no predecessor, and if nothing moves.
    """
    motion_KF = motion_T.reshape(-1, chunk)
    inside_K = motion_KF[:, 1:].mean(axis=1)
    ratio_K = np.full(len(motion_KF), np.nan)
    usual = (inside_K[1:] + inside_K[:-1]) / 2
    np.divide(motion_KF[1:, 0], usual, out=ratio_K[1:], where=usual > 0)
    return ratio_K
