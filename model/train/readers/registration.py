"""Finds a known head in a picture: its shift and rotation relative to rest.

First whole pixels and few angles by correlation, then Gauss-Newton steps on the difference of the
two pictures, in which large differences (a blink) count little. Source of the second part: B. D.
Lucas and T. Kanade, "An iterative image registration technique" (IJCAI 1981).
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..faces.identity import Identity
from ..faces.painter import EYE_Y, MOUTH_Y, PIVOT, Painter, Pose, picture_points, turned

Floats: TypeAlias = NDArray[np.float64]

_TURNS = (-0.1, -0.05, 0.0, 0.05, 0.1)  # radians
_FURTHEST = 0.085  # shift of a head, as a fraction of the picture's shorter side
_STEPS = 10
_DOUBTFUL = 40.0  # difference, of 255, at which a pixel counts half


@dataclass(frozen=True, kw_only=True)
class Place:
    """Position of eyes, nose and mouth relative to the head at rest.

    Attributes:
        x: To the right, as a fraction of the picture's shorter side.
        y: Down.
        roll: Rotation, in radians.
    """

    x: float = 0.0
    y: float = 0.0
    roll: float = 0.0

    def to_picture(self, points: Floats) -> Floats:
        """Convert face coordinates to picture coordinates, [..., 2]."""
        return np.asarray((points - PIVOT) @ turned(self.roll) + PIVOT + (self.x, self.y))

    def to_face(self, points: Floats) -> Floats:
        """Convert picture coordinates to face coordinates, [..., 2]."""
        return np.asarray((points - PIVOT - (self.x, self.y)) @ turned(-self.roll) + PIVOT)


class HeadFinder:
    """Finds one person's head."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Draw it at rest, and rotated.

        Args:
            person: The person.
            size: Pictures' (H, W).
        """
        self._size, self._scale = size, float(min(size))
        painter, points = Painter(person, size), picture_points(size)
        self._templates = [_spectra(painter, points, turn) for turn in _TURNS]
        rest = painter.draw(Pose()).astype(np.float64)
        down, right = (np.asarray(slope) for slope in np.gradient(rest, axis=(0, 1)))
        seen = _features(points)
        self._points, self._rest = points[seen], rest[seen]
        x, y = (self._points - PIVOT).T[..., None]
        # Columns: how the picture changes with a shift to the right, down, and a rotation.
        self._slopes = (
            np.stack([right[seen], down[seen], -y * right[seen] + x * down[seen]]) * self._scale
        )

    def find(self, frame_HWC: Floats) -> Place:
        """Locate eyes, nose and mouth.

        Args:
            frame_HWC: float64 [H, W, 3], 0..255.
        """
        place = self._coarse(frame_HWC)
        for _ in range(_STEPS):
            there = Place(x=place[0], y=place[1], roll=place[2]).to_picture(self._points)
            differences = sample(frame_HWC, there * self._scale) - self._rest
            doubt = (differences**2).sum(axis=-1, keepdims=True) / _DOUBTFUL**2
            weighted = self._slopes / (1 + doubt)
            normal = np.einsum("amc,bmc->ab", weighted, self._slopes)
            place = place - np.linalg.solve(
                normal + 1e-6 * np.trace(normal) * np.eye(3),
                np.einsum("amc,mc->a", weighted, differences),
            )
        return Place(x=float(place[0]), y=float(place[1]), roll=float(place[2]))

    def _coarse(self, frame: Floats) -> Floats:
        """Locate them to whole pixels and the drawn angles."""
        reach = int(np.ceil(_FURTHEST * self._scale))
        near = np.arange(-reach, reach + 1)
        spectrum = np.fft.rfft2(frame, axes=(0, 1))
        squares = np.fft.rfft2((frame**2).sum(axis=-1))
        misfits = []
        for picture, counts, own in self._templates:
            crossed = (spectrum * picture).sum(axis=-1)
            misfit = np.fft.irfft2(squares * counts - 2 * crossed, self._size) + own
            misfits.append(misfit[np.ix_(near, near)])
        cube = np.array(misfits)
        turn, down, right = np.unravel_index(int(cube.argmin()), cube.shape)
        return np.array([near[right] / self._scale, near[down] / self._scale, _TURNS[int(turn)]])


def _spectra(
    painter: Painter, points: Floats, turn: float
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Compute spectra of the rotated head and its mask, and its sum of squares."""
    counts = _features(Place(roll=turn).to_face(points)).astype(np.float64)
    picture = painter.draw(Pose(roll=turn)) * counts[..., None]
    spectrum = np.conj(np.fft.rfft2(picture, axes=(0, 1)))
    return spectrum, np.conj(np.fft.rfft2(counts)), float((picture**2).sum())


def _features(points: Floats) -> NDArray[np.bool_]:
    """Mark the eyes, brows and nose of a head at rest."""
    x, y = np.moveaxis(points, -1, 0)
    return (np.abs(x) < 0.2) & (y > EYE_Y - 0.15) & (y < MOUTH_Y - 0.06)


def sample(frame_HWC: Floats, places_M2: Floats) -> Floats:
    """Interpolate pixels, [M, 3]; positions relative to the picture's centre, in pixels."""
    height, width, _ = frame_HWC.shape
    x = np.clip(places_M2[:, 0] + width / 2 - 0.5, 0, width - 1.001)
    y = np.clip(places_M2[:, 1] + height / 2 - 0.5, 0, height - 1.001)
    left, top = x.astype(int), y.astype(int)
    right_share, lower_share = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - right_share) * frame_HWC[top, left] + right_share * frame_HWC[top, left + 1]
    lower = (1 - right_share) * frame_HWC[top + 1, left] + right_share * frame_HWC[
        top + 1, left + 1
    ]
    return (1 - lower_share) * upper + lower_share * lower
