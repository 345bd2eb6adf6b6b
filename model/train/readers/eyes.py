"""Compares the eyes of a face with drawn ones: how far the lids are closed, and where they look."""

from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..faces.identity import Identity
from ..faces.painter import EYE_HEIGHT, EYE_WIDTH, EYE_X, EYE_Y, Painter, Pose
from .registration import Place, sample

Floats: TypeAlias = NDArray[np.float64]

_LIDS = np.linspace(0, 1, 6)
_ACROSS = np.linspace(-1, 1, 7)
_DOWN = np.linspace(-1, 1, 5)
_GRIDS = (_LIDS, _ACROSS, _DOWN)
_HALF_CLOSED = 0.25  # blink above which the gaze cannot be determined
_STEP = 0.75  # maximum distance from the best drawn ones, in grid steps


class EyeReader:
    """Knows one person's eyes in many positions."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Draw the eyes.

        Args:
            person: The person.
            size: Pictures' (H, W).
        """
        self._scale = float(min(size))
        width, height = 1.1 * EYE_WIDTH * person.eye_size, EYE_HEIGHT * person.eye_size
        x = np.arange(-width, width, 1 / self._scale)
        y = np.arange(EYE_Y - 1.15 * height, EYE_Y + 0.8 * height, 1 / self._scale)
        eyes = [np.stack(np.meshgrid(side * EYE_X + x, y), -1) for side in (-1, 1)]
        self._places = np.concatenate(eyes).reshape(-1, 2)
        painter, rest = Painter(person, size), Place()
        poses = (Pose(blink=b, gaze_x=x, gaze_y=y) for b, x, y in product(*_GRIDS))
        self._drawn = np.array(
            [self._patch(painter.draw(pose).astype(np.float64), rest) for pose in poses]
        )
        self._squares = (self._drawn**2).sum(axis=1)

    def read(self, frame_HWC: Floats, place: Place) -> tuple[float, float, float]:
        """Measure blink and gaze; gaze is NaN if the eyes are too far closed.

        Args:
            frame_HWC: float64 [H, W, 3], 0..255.
            place: Position of the face.
        """
        seen = self._patch(frame_HWC, place)
        misfits = self._squares - 2 * self._drawn @ seen
        sizes = [len(grid) for grid in _GRIDS]
        best = np.array(np.unravel_index(int(misfits.argmin()), sizes))
        drawn = self._drawn.reshape(*sizes, -1)
        slopes = np.array([_slope(drawn, best, axis) for axis in range(len(sizes))])
        normal = slopes @ slopes.T
        normal += (1e-3 * np.trace(normal) + 1e-9) * np.eye(len(sizes))
        step = np.linalg.solve(normal, slopes @ (seen - drawn[tuple(best)]))
        places = best + np.clip(step, -_STEP, _STEP)
        blink, across, down = (
            float(np.interp(place, np.arange(len(grid)), grid))
            for place, grid in zip(places, _GRIDS, strict=True)
        )
        return (blink, across, down) if blink < _HALF_CLOSED else (blink, np.nan, np.nan)

    def _patch(self, frame: Floats, place: Place) -> Floats:
        return sample(frame, place.to_picture(self._places) * self._scale).ravel()


def _slope(drawn: Floats, at: NDArray[np.intp], axis: int) -> Floats:
    """Compute how the patch changes along a grid axis, per step."""
    last = drawn.shape[axis] - 1
    before, after = at.copy(), at.copy()
    before[axis], after[axis] = max(at[axis] - 1, 0), min(at[axis] + 1, last)
    change = drawn[tuple(after)] - drawn[tuple(before)]
    return np.asarray(change / (after[axis] - before[axis]))
