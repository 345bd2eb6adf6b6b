"""Compares the eyes of a face with drawn ones: how far the lids are closed, and where they look.

A look to the side moves the iris by up to two pixels of 96, and a head that is found by eyes at
rest follows it by a part of that. So place and eyes are refined together.
"""

from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..faces.painter import Pose
from .registration import Features, Pixels, Place, damped_step

Floats: TypeAlias = NDArray[np.float64]

_LIDS = np.linspace(0, 1, 6)
_ACROSS = np.linspace(-1, 1, 7)
_DOWN = np.linspace(-1, 1, 9)
_GRIDS = (_LIDS, _ACROSS, _DOWN)
_SHAPE = (len(_LIDS), len(_ACROSS), len(_DOWN))
_LAST = np.array(_SHAPE) - 1
_HALF_CLOSED = 0.25  # blink above which the gaze cannot be determined
_EACH = 2  # pixel of which drawn eyes are first compared
_STEPS = 6


class EyeReader:
    """Knows one person's eyes in many positions."""

    def __init__(self, features: Features) -> None:
        """Draw the eyes.

        Args:
            features: The person's eyes, brows and nose.
        """
        self._features = features
        poses = (Pose(blink=b, gaze_x=x, gaze_y=y) for b, x, y in product(*_GRIDS))
        drawn = np.stack([features.draw(pose) for pose in poses])
        self._drawn = drawn.reshape(*_SHAPE, *drawn.shape[1:])
        few = (drawn * features.known)[:, ::_EACH, ::_EACH]
        self._flat = few.reshape(len(drawn), -1)
        self._squares = (self._flat**2).sum(axis=1)

    def read(self, frame_HWC: Pixels, place: Place) -> tuple[Place, tuple[float, float, float]]:
        """Measure blink and gaze; gaze is NaN if the eyes are too far closed.

        Args:
            frame_HWC: float32 [H, W, 3], 0..255.
            place: Approximate position of the face.

        Returns:
            The position, refined; blink, gaze_x and gaze_y.
        """
        seen = self._features.sample(frame_HWC, place)
        misfits = self._squares - 2 * (self._flat @ seen[::_EACH, ::_EACH].ravel())
        best = np.unravel_index(int(misfits.argmin()), _SHAPE)
        state = np.array([place.x, place.y, place.roll, *best])
        for step in range(_STEPS):
            if step:
                seen = self._features.sample(frame_HWC, Place.of(state[:3]))
            drawn, slopes = self._between(state[3:])
            both = np.concatenate([self._features.slopes(drawn), slopes])
            state += damped_step(both, seen - drawn, self._features.known)
            state[3:] = np.clip(state[3:], 0, _LAST)
        blink, across, down = (
            float(np.interp(at, np.arange(len(grid)), grid))
            for at, grid in zip(state[3:], _GRIDS, strict=True)
        )
        gaze = (across, down) if blink < _HALF_CLOSED else (np.nan, np.nan)
        return Place.of(state[:3]), (blink, *gaze)

    def _between(self, at: Floats) -> tuple[Pixels, Pixels]:
        """Interpolate eyes between the drawn ones, [h, w, 3], and their slopes, [3, h, w, 3]."""
        first = np.minimum(at.astype(int), _LAST - 1)
        shares = (at - first).astype(np.float32)
        b, x, y = first
        corners = self._drawn[b : b + 2, x : x + 2, y : y + 2]
        slopes = []
        for axis in range(3):
            rise = np.moveaxis(np.diff(corners, axis=axis), axis, 0)[0]
            for share in np.delete(shares, axis):
                rise = rise[0] + share * (rise[1] - rise[0])
            slopes.append(rise)
        for share in shares:
            corners = corners[0] + share * (corners[1] - corners[0])
        return corners, np.stack(slopes)
