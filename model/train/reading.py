"""Mouth, eyes and place of a drawn face, read off its pictures by colours and places.

Nothing is learnt, and no loss uses it: it judges what a model has drawn of a known person. The head
is found where the person at rest, turned and shifted, fits best. Then each pixel near mouth and
eyes is shared out among the colours that the person has, and heights, areas and centres of what is
mouth, lid, white and iris give the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .hair import half_face
from .identity import Identity, Rgb, mix
from .painter import (
    EYE_HEIGHT,
    EYE_WIDTH,
    EYE_X,
    EYE_Y,
    MOUTH_Y,
    NEARER,
    PIVOT,
    PUPIL,
    WHITE,
    Painter,
    Pose,
    picture_points,
    turned,
)
from .registration import HeadFinder

Floats: TypeAlias = NDArray[np.float64]

READ = ("opening", "width", "blink", "gaze_x", "gaze_y", "sway_x", "sway_y", "roll")
"""Columns of what is read, named as in the truth."""
_LIKENESS = 20.0  # distance of colours, of 255, at which a pixel is taken for another
_MOUTH_ASIDE, _MOUTH_ABOVE, _MOUTH_BELOW = 0.14, 0.075, 0.122  # from the mouth's middle
_GRID = np.array([0.0, 0.15, 0.4, 0.7, 1.0])  # of openings, widths and blinks to compare with
_LOOKS = np.linspace(-1, 1, 5)
_ROUNDS = 4
_RIM = 0.015  # of a face, that is not looked at
_THIN = 0.008  # height of a closed mouth's end
_MIDDLE = 0.025  # half of the columns in which the mouth's height is measured
_LEAST_OPEN = 0.5  # of the eyes, with which a look can be told


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """Sizes in parts of the picture's shorter side, or squares of it."""

    height: float
    breadth: float
    white: float
    look: tuple[float, float]
    place: tuple[float, float, float]


class FaceReader:
    """Reads pictures of one person."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Look at the person at rest.

        Args:
            person: Who is seen.
            size: Pictures' (H, W).
        """
        skin, hair = person.skin, person.hair
        shade = mix(skin, (120, 44, 40), 0.22)
        self._person = person
        self._skin = (skin, shade, mix(skin, (226, 84, 84), 0.16), mix(skin, shade, 0.6))
        self._iris = (person.iris, mix(person.iris, (0, 0, 0), 0.45), PUPIL)
        self._hair = (hair, mix(hair, (20, 14, 14), 0.75))
        self._scale = float(min(size))
        self._points = picture_points(size)
        self._finder = HeadFinder(person, size)
        painter = Painter(person, size)
        self._whites = np.array([self._see(painter.draw(Pose(blink=b))).white for b in _GRID])
        looks = [self._see(painter.draw(Pose(gaze_x=g, gaze_y=g))).look for g in _LOOKS]
        self._looks = np.array(looks).T
        mouths = [
            [self._see(painter.draw(Pose(opening=opening, width=width))) for width in _GRID]
            for opening in _GRID
        ]
        self._heights = np.array([[sight.height for sight in row] for row in mouths])
        self._breadths = np.array([[sight.breadth for sight in row] for row in mouths])

    def read(self, frames_THWC: NDArray[np.uint8]) -> Floats:
        """Read pictures.

        Args:
            frames_THWC: uint8 [T, H, W, 3].

        Returns:
            [T, 8], columns `READ`. Gaze is NaN where the eyes are closed.
        """
        return np.array([self._values(self._see(frame)) for frame in frames_THWC])

    def _values(self, sight: _Sight) -> list[float]:
        opening, width = self._opening_width(sight)
        blink = _inverse(-sight.white, -self._whites, _GRID)
        looks = [
            _inverse(value, curve, _LOOKS) if blink < 1 - _LEAST_OPEN else np.nan
            for value, curve in zip(sight.look, self._looks, strict=True)
        ]
        return [
            opening,
            width,
            blink,
            *looks,
            *sight.place,
        ]

    def _opening_width(self, sight: _Sight) -> tuple[float, float]:
        """Opening and width: each of height and breadth depends a little on the other too."""
        opening, width = 0.3, 0.5
        for _ in range(_ROUNDS):
            heights = [np.interp(width, _GRID, row) for row in self._heights]
            opening = _inverse(sight.height, np.array(heights), _GRID)
            breadths = [np.interp(opening, _GRID, row) for row in self._breadths.T]
            width = _inverse(sight.breadth, np.array(breadths), _GRID)
        return opening, width

    def _see(self, frame_HWC: NDArray[np.uint8]) -> _Sight:
        frame = frame_HWC.astype(np.float64)
        x, y, roll = self._finder.find(frame)
        face = (self._points - PIVOT - (x, y)) @ turned(-roll) + PIVOT
        height, breadth = self._mouth(frame, face)
        eyes = [self._eye(frame, face * [side, 1.0], side) for side in (-1, 1)]
        white, across, down = np.mean(eyes, axis=0)
        return _Sight(
            height=height,
            breadth=breadth,
            white=float(white),
            look=(float(across), float(down)),
            place=(x / (1 + NEARER[0]), y / (1 + NEARER[1]), roll),
        )

    def _mouth(self, frame: Floats, face: Floats) -> tuple[float, float]:
        """Height of the mouth with its lips, and its breadth."""
        x, y = np.moveaxis(face, -1, 0)
        y = y - MOUTH_Y
        box = np.clip((y + _MOUTH_ABOVE) * self._scale, 0, 1)
        box *= np.clip((_MOUTH_BELOW - y) * self._scale, 0, 1)
        aside = np.minimum(_MOUTH_ASIDE, half_face(self._person, y + MOUTH_Y) - _RIM)
        box *= np.clip((aside - np.abs(x)) * self._scale, 0, 1)
        mouth = box * (1 - self._like(frame, self._skin))
        columns = np.clip((_MIDDLE - np.abs(x)) * self._scale + 0.5, 0, 1)
        height = (mouth * columns).sum() / self._scale**2 / (2 * _MIDDLE)
        # Columns of a curved mouth are counted where they are: by their place in the face.
        places = np.clip((x + _MOUTH_ASIDE) * self._scale, 0, None)
        left = places.astype(int)
        share = places - left
        profile = np.bincount(left.ravel(), (mouth * (1 - share)).ravel())
        profile[1:] += np.bincount(left.ravel(), (mouth * share).ravel())[:-1]
        breadth = (1 - np.exp(-profile / (_THIN * self._scale))).sum() / self._scale
        return float(height), float(breadth)

    def _eye(self, frame: Floats, face: Floats, side: int) -> tuple[float, float, float]:
        """How much white there is on an open eye's place, and where the eye looks."""
        x, y = np.moveaxis(face, -1, 0)
        size = self._person.eye_size
        x, y = (x - EYE_X) / (EYE_WIDTH * size), (y - EYE_Y) / (EYE_HEIGHT * size)
        arch = np.clip(1 - x**2, 0, None) ** 0.7
        pixel = EYE_HEIGHT * size * self._scale
        inside = np.clip((0.62 * arch - y) * pixel + 0.5, 0, 1) * (np.abs(x) < 1)
        inside *= np.clip((y + arch) * pixel + 0.5, 0, 1)
        parts = self._shared(frame, (WHITE, *self._iris, *self._skin, *self._hair)) * inside
        white, dark, pupil = parts[0], parts[1:4].sum(axis=0), parts[3]
        middle = (dark * x).sum() / (dark.sum() + 1e-9)
        beside = np.tanh((middle - x) * EYE_WIDTH * size * self._scale)
        across = (white * beside).sum() / (white.sum() + 1e-9)
        down = (pupil * y).sum() / (pupil.sum() + 1e-9)
        return float(white.sum() / inside.sum()), float(side * across), float(down)

    def _like(self, frame: Floats, colours: Sequence[Rgb]) -> Floats:
        """How like the nearest of some colours each pixel is, [H, W] in 0..1."""
        away = ((frame - np.array(colours, np.float64)[:, None, None]) ** 2).sum(axis=-1)
        return np.asarray(np.exp(-away.min(axis=0) / (2 * _LIKENESS**2)))

    def _shared(self, frame: Floats, colours: Sequence[Rgb]) -> Floats:
        """Share of each pixel that is of each colour, [n, H, W]."""
        away = ((frame - np.array(colours, np.float64)[:, None, None]) ** 2).sum(axis=-1)
        weights = np.exp(-(away - away.min(axis=0)) / (2 * _LIKENESS**2))
        return np.asarray(weights / weights.sum(axis=0))


def _share(value: float, none: float, all_: float) -> float:
    return (value - none) / (all_ - none)


def _inverse(value: float, curve: Floats, grid: Floats) -> float:
    """Where on the grid a rising curve has a value."""
    return float(np.interp(value, np.maximum.accumulate(curve), grid))
