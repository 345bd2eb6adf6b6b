"""Measures mouth, eyes and position of a drawn face in its pictures, by colours and positions.

Nothing is learned, and no loss uses it: it judges what a model has drawn of a known person. The
head is found where the person at rest, rotated and shifted, fits best, and refined together with
the eyes, which are compared with drawn ones. What is not skin around the mouth, in the light in
which the rest of the face is, has a height and a width.
"""

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..faces.hair import half_face
from ..faces.identity import Identity, Rgb, mix
from ..faces.painter import MOUTH_Y, Painter, Pose, picture_points
from .eyes import EyeReader
from .registration import Features, HeadFinder, Place, smoothed

Floats: TypeAlias = NDArray[np.float64]

READ = ("opening", "width", "blink", "gaze_x", "gaze_y", "sway_x", "sway_y", "roll")
"""Measured columns, named as in the truth."""
_LIKENESS = 20.0  # colour distance, of 255, at which a pixel is taken for another
_MOUTH_ASIDE, _MOUTH_ABOVE, _MOUTH_BELOW = 0.14, 0.075, 0.122  # from the mouth's centre
_GRID = np.array([0.0, 0.15, 0.4, 0.7, 1.0])  # openings and widths to compare with
_ROUNDS = 4
_RIM = 0.015  # edge of a face that is ignored
_THIN = 0.008  # height of a closed mouth's corner
_MIDDLE = 0.025  # half of the columns in which the mouth's height is measured


class FaceReader:
    """Measures pictures of one person."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Analyse the person at rest.

        Args:
            person: The person seen.
            size: Pictures' (H, W).
        """
        skin = person.skin
        shade = mix(skin, (120, 44, 40), 0.22)
        self._person = person
        self._skin = (skin, shade, mix(skin, (226, 84, 84), 0.16), mix(skin, shade, 0.6))
        self._scale = float(min(size))
        self._points = picture_points(size)
        self._features = Features(person, size)
        self._finder = HeadFinder(person, self._features)
        self._eyes = EyeReader(self._features)
        painter = Painter(person, size)
        drawn = product(_GRID, repeat=2)
        mouths = [painter.draw(Pose(opening=opening, width=width)) for opening, width in drawn]
        sizes = np.array([self._mouth(mouth.astype(np.float32), Place()) for mouth in mouths])
        self._mouths = _Mouths(*sizes.T.reshape(2, len(_GRID), len(_GRID)))

    def read(self, frames_THWC: NDArray[np.uint8]) -> Floats:
        """Measure pictures.

        Args:
            frames_THWC: uint8 [T, H, W, 3].

        Returns:
            [T, 8], columns `READ`. Gaze is NaN if the eyes are closed.
        """
        return self.read_places(frames_THWC)[0]

    def read_places(self, frames_THWC: NDArray[np.uint8]) -> tuple[Floats, list[Place]]:
        """Measure pictures; return what `read` does, and the position of each face."""
        values, places = [], []
        for frame in frames_THWC.astype(np.float32):
            soft = smoothed(frame)
            place, eyes = self._eyes.read(soft, self._finder.find(soft))
            tint = self._features.tint(soft, place)
            opening, width = self._mouths.solve(*self._mouth(frame / tint, place))
            values.append([opening, width, *eyes, *place.sway(), place.roll])
            places.append(place)
        return np.array(values), places

    def _mouth(self, frame: Floats, place: Place) -> tuple[float, float]:
        """Measure the height of the mouth including lips, and its width."""
        x, y = np.moveaxis(place.to_face(self._points), -1, 0)
        y = y - MOUTH_Y
        box = np.clip((y + _MOUTH_ABOVE) * self._scale, 0, 1)
        box *= np.clip((_MOUTH_BELOW - y) * self._scale, 0, 1)
        aside = np.minimum(_MOUTH_ASIDE, half_face(self._person, y + MOUTH_Y) - _RIM)
        box *= np.clip((aside - np.abs(x)) * self._scale, 0, 1)
        mouth = box * (1 - self._like(frame, self._skin))
        columns = np.clip((_MIDDLE - np.abs(x)) * self._scale + 0.5, 0, 1)
        height = (mouth * columns).sum() / self._scale**2 / (2 * _MIDDLE)
        # Columns of a curved mouth are counted where they are: by their position in the face.
        places = np.clip((x + _MOUTH_ASIDE) * self._scale, 0, None)
        left = places.astype(int)
        share = places - left
        profile = np.bincount(left.ravel(), (mouth * (1 - share)).ravel())
        profile[1:] += np.bincount(left.ravel(), (mouth * share).ravel())[:-1]
        breadth = (1 - np.exp(-profile / (_THIN * self._scale))).sum() / self._scale
        return float(height), float(breadth)

    def _like(self, frame: Floats, colours: Sequence[Rgb]) -> Floats:
        """Compute how similar each pixel is to the nearest of some colours, [H, W] in 0..1."""
        apart = frame - np.array(colours, np.float32)[:, None, None]
        away = np.einsum("khwc,khwc->khw", apart, apart).min(axis=0)
        return np.asarray(np.exp(-away / (2 * _LIKENESS**2)))


class _Mouths:
    """Heights and widths of drawn mouths, [opening, width]: each depends a little on both."""

    def __init__(self, heights: Floats, breadths: Floats) -> None:
        self._heights, self._breadths = heights, breadths

    def solve(self, height: float, breadth: float) -> tuple[float, float]:
        """Find opening and width of a mouth by alternating between them."""
        opening, width = 0.3, 0.5
        for _ in range(_ROUNDS):
            opening = _inverse(height, _between(self._heights.T, width))
            width = _inverse(breadth, _between(self._breadths, opening))
        return opening, width


def _between(curves: Floats, at: float) -> Floats:
    """Interpolate between the curves of the grid's values."""
    return np.array([np.interp(at, _GRID, values) for values in curves.T])


def _inverse(value: float, curve: Floats) -> float:
    """Find where on the grid a rising curve has a value."""
    return float(np.interp(value, np.maximum.accumulate(curve), _GRID))
