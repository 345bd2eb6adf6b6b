"""Finds a known head in a picture: its shift and rotation relative to rest.

First whole pixels and few angles by correlation; `eyes` refines them by Gauss-Newton steps on the
difference of the two pictures, in which large differences count little. Source of the steps: B. D.
Lucas and T. Kanade, "An iterative image registration technique" (IJCAI 1981).
"""

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..faces.identity import Identity
from ..faces.painter import (
    EYE_Y,
    MOUTH_Y,
    NEARER,
    PIVOT,
    Painter,
    Pose,
    picture_points,
    turned,
)

Floats: TypeAlias = NDArray[np.float64]
Pixels: TypeAlias = NDArray[np.float32]

_TURNS = (-0.1, -0.05, 0.0, 0.05, 0.1)  # radians
_BLINKS = (0.0, 1.0)
_FURTHEST = 0.085  # shift of a head, as a fraction of the picture's shorter side
_DOUBTFUL = 40.0  # difference, of 255, at which a pixel counts half
_DAMPING = 1e-4
_MOVED = 0.04  # fraction of the shorter side by which a head is moved to see what moves with it
_DARKEST = 0.25  # factor below which a face is not taken for a dark one
_ALIKE = 12  # levels, of 255, by which a pixel that moves with the nose may change


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

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Build a position from x, y and roll."""
        x, y, roll = values.tolist()
        return cls(x=x, y=y, roll=roll)

    def to_picture(self, points: Floats) -> Floats:
        """Convert face coordinates to picture coordinates, [..., 2]."""
        return np.asarray((points - PIVOT) @ turned(self.roll) + PIVOT + (self.x, self.y))

    def to_face(self, points: Floats) -> Floats:
        """Convert picture coordinates to face coordinates, [..., 2]."""
        return np.asarray((points - PIVOT - (self.x, self.y)) @ turned(-self.roll) + PIVOT)

    def sway(self) -> tuple[float, float]:
        """Compute the sway s of the head: (x, y) = s + (NEARER * s) @ turned(roll)."""
        moved = np.eye(2) + NEARER[:, None] * turned(self.roll)
        right, down = np.linalg.solve(moved.T, (self.x, self.y))
        return float(right), float(down)


class Features:
    """A person's eyes, brows and nose: a rectangle [h, w] of the face.

    Attributes:
        size: Pictures' (H, W).
        known: 1 where pixels move with the nose, 0 where hair or the face's edge may be, which move
            less, float32 [h, w, 1].
    """

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Find them.

        Args:
            person: The person.
            size: Pictures' (H, W).
        """
        self.size, self._scale = size, float(min(size))
        self._painter, points = Painter(person, size), picture_points(size)
        inside = _inside(points)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        self._where = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._points = points[self._where]
        x, y = np.moveaxis(self._points - PIVOT, -1, 0)[..., None].astype(np.float32)
        self._x, self._y = x, y
        self.known = self._moving()
        skin = np.array(person.skin, np.float32)
        bare = np.abs(self.draw(Pose()) - skin).max(axis=-1) <= _ALIKE
        self._skin, self._bare = skin, bare & (self.known[..., 0] > 0)

    def draw(self, pose: Pose) -> Pixels:
        """Draw a head that is in its place, and cut the rectangle out, float32 [h, w, 3]."""
        return smoothed(self._painter.draw(pose))[self._where]

    def sample(self, frame_HWC: Pixels, place: Place) -> Pixels:
        """Interpolate the rectangle of a face at a place in a picture, [h, w, 3]."""
        points = place.to_picture(self._points) * self._scale
        return sample(frame_HWC, points.reshape(-1, 2)).reshape(*self._points.shape[:2], -1)

    def tint(self, frame_HWC: Pixels, place: Place) -> Pixels:
        """Compute the skin's colour between eyes and nose relative to the person's own, [3]."""
        seen = np.median(self.sample(frame_HWC, place)[self._bare], axis=0)
        return np.maximum(seen / self._skin, np.float32(_DARKEST))

    def slopes(self, drawn_hwC: Pixels) -> Pixels:
        """Compute how a picture changes with the face's x, y and roll, [3, h, w, 3]."""
        down, right = np.gradient(drawn_hwC, axis=(0, 1))
        turn = self._x * down - self._y * right
        return np.stack([right, down, turn]) * np.float32(-self._scale)

    def _moving(self) -> Pixels:
        """Draw the head moved by whole pixels, and see what else has changed."""
        rest = self.draw(Pose())
        pixels = max(round(_MOVED * self._scale), 1)
        changed = np.zeros(rest.shape[:2])
        for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            shift = np.array([right, down]) * pixels / self._scale
            sway = shift / (1 + NEARER)
            frame = self._painter.draw(Pose(sway_x=sway[0], sway_y=sway[1]))
            moved = self.sample(smoothed(frame), Place(x=shift[0], y=shift[1]))
            changed = np.maximum(changed, np.abs(moved - rest).max(axis=-1))
        return (changed <= _ALIKE).astype(np.float32)[..., None]


class HeadFinder:
    """Finds one person's head."""

    def __init__(self, person: Identity, features: Features) -> None:
        """Draw it at rest, and rotated, with open and with closed eyes.

        Args:
            person: The person.
            features: Eyes, brows and nose.
        """
        self._size, self._scale = features.size, float(min(features.size))
        painter = Painter(person, features.size)
        self._templates = [_Template(painter, turn, blink) for turn in _TURNS for blink in _BLINKS]

    def find(self, frame_HWC: Pixels) -> Place:
        """Locate eyes, nose and mouth to whole pixels and a few angles.

        Args:
            frame_HWC: From `smoothed`.
        """
        reach = int(np.ceil(_FURTHEST * self._scale))
        near = np.arange(-reach, reach + 1)
        spectrum = np.fft.rfft2(frame_HWC, axes=(0, 1))
        squares = np.fft.rfft2(np.einsum("hwc,hwc->hw", frame_HWC, frame_HWC))
        misfits = []
        for template in self._templates:
            crossed = np.einsum("hwc,hwc->hw", spectrum, template.spectrum)
            misfit = np.fft.irfft2(squares * template.counts - 2 * crossed, self._size)
            misfits.append(misfit[np.ix_(near, near)] + template.squares)
        cube = np.array(misfits)
        number, down, right = np.unravel_index(int(cube.argmin()), cube.shape)
        x, y = near[right] / self._scale, near[down] / self._scale
        return Place(x=float(x), y=float(y), roll=self._templates[int(number)].turn)


class _Template:
    """A rotated head: spectra of its features and of their mask, and the sum of squares."""

    def __init__(self, painter: Painter, turn: float, blink: float) -> None:
        self.turn = turn
        counts = _inside(Place(roll=turn).to_face(picture_points(painter.size))).astype(float)
        picture = smoothed(painter.draw(Pose(roll=turn, blink=blink))) * counts[..., None]
        self.spectrum = np.conj(np.fft.rfft2(picture, axes=(0, 1)))
        self.counts = np.conj(np.fft.rfft2(counts))
        self.squares = float((picture**2).sum())


def damped_step(slopes_AhwC: Pixels, differences_hwC: Pixels, counts_hw1: Pixels) -> Floats:
    """Solve for the parameters whose change explains differences between two pictures, [A].

    Minimises sum(w * (differences - slopes * step)^2) with w = counts / (1 + (difference / 40)^2).

    Args:
        slopes_AhwC: Change of the picture with each parameter.
        differences_hwC: Seen minus drawn.
        counts_hw1: Weight of each pixel.
    """
    doubt = np.einsum("hwc,hwc->hw", differences_hwC, differences_hwC)[..., None] / _DOUBTFUL**2
    slopes = slopes_AhwC.reshape(len(slopes_AhwC), -1)
    weighted = (slopes_AhwC * (counts_hw1 / (1 + doubt))).reshape(len(slopes), -1)
    normal = (weighted @ slopes.T).astype(np.float64)
    normal += np.diag(_DAMPING * normal.diagonal() + 1e-9 * (np.trace(normal) + 1))
    return np.asarray(np.linalg.solve(normal, weighted @ differences_hwC.ravel()), np.float64)


def smoothed(frame_HWC: NDArray[Any]) -> Pixels:
    """Smooth a picture by weights 1, 4, 6, 4, 1 both ways, float32 [H, W, 3]; edges are repeated.

    Interpolating between pixels or between drawn eyes blurs: without this, a blurred picture would
    match eyes halfway between two drawn ones best, wherever they look.
    """
    padded = np.pad(frame_HWC.astype(np.float32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    high = padded[:-4] + padded[4:] + 4 * (padded[1:-3] + padded[3:-1]) + 6 * padded[2:-2]
    wide = high[:, :-4] + high[:, 4:] + 4 * (high[:, 1:-3] + high[:, 3:-1]) + 6 * high[:, 2:-2]
    return np.asarray(wide / np.float32(256))


def _inside(points: Floats) -> NDArray[np.bool_]:
    """Mark the eyes, brows and nose of a head at rest."""
    x, y = np.moveaxis(points, -1, 0)
    return (np.abs(x) < 0.2) & (y > EYE_Y - 0.15) & (y < MOUTH_Y - 0.06)


def sample(frame_HWC: NDArray[Any], places_M2: Floats) -> NDArray[Any]:
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
    return np.asarray((1 - lower_share) * upper + lower_share * lower)
