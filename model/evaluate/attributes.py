"""Identifies who is seen, from the colours of a drawn face's parts where they should be."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..train.faces.cast import PERSONS
from ..train.faces.identity import EYES, Identity
from ..train.faces.painter import EYE_X, EYE_Y, GAZE_X, GAZE_Y, IRIS, Painter, Pose
from ..train.readers.registration import Place, sample
from .difference import ciede2000, lab_of

Floats: TypeAlias = NDArray[np.float64]
Box: TypeAlias = tuple[float, float, float, float]

# In face coordinates: centre, and half of the width and height, of one or two boxes.
_IN_FACE: dict[str, tuple[Box, ...]] = {
    "skin": ((-0.08, 0.06, 0.03, 0.02), (0.08, 0.06, 0.03, 0.02)),
    "hair": ((0.0, -0.27, 0.06, 0.015),),
    "eyes": tuple((side * EYE_X, EYE_Y - 0.006, 0.7 * IRIS, 0.5 * IRIS) for side in (-1, 1)),
}
# The same in picture coordinates, where nothing occludes them.
_IN_PICTURE: dict[str, tuple[Box, ...]] = {
    "wall": ((-0.42, -0.44, 0.05, 0.04), (0.42, -0.44, 0.05, 0.04)),
    "clothes": ((-0.22, 0.48, 0.06, 0.015), (0.22, 0.48, 0.06, 0.015)),
}
PARTS = (*_IN_FACE, *_IN_PICTURE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What pictures show about who is in them.

    Attributes:
        away: CIEDE2000 of each part's colour from the person's own, [T, parts]; NaN for closed
            eyes.
        recognised: Whether the person is nearer than any other in the test split, bool [T].
        eyes_kept: Whether the eyes are nearer to the person's own colour than to any other, [T]:
            0, 1, or NaN if closed.
    """

    away: Floats
    recognised: NDArray[np.bool_]
    eyes_kept: Floats


class AttributeReader:
    """Compares pictures of one person with drawings of everyone in the test split."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Prepare the drawings.

        Args:
            person: Who should be seen.
            size: Pictures' (H, W).
        """
        self._scale = float(min(size))
        self._own = self._drawn([person], size)
        others = [n for n in PERSONS["test"] if n != person.number]
        self._others = self._drawn([Identity.of(n) for n in others], size)
        other_eyes = [replace(person, eyes=name) for name in EYES if name != person.eyes]
        self._other_eyes = self._drawn(other_eyes, size)[:, PARTS.index("eyes")]

    def read(
        self, frames_THWC: NDArray[np.uint8], places: Sequence[Place], gaze_T2: Floats
    ) -> Seen:
        """Identify who is seen.

        Args:
            frames_THWC: The pictures.
            places: Position of each head.
            gaze_T2: Gaze direction in each, as in a `Pose`; NaN for closed eyes.
        """
        closed_T = np.isnan(gaze_T2).any(axis=1)
        looks = np.nan_to_num(gaze_T2) * (GAZE_X, GAZE_Y)
        colours = np.stack(
            [self._colours(*seen) for seen in zip(frames_THWC, places, looks, strict=True)]
        )
        away = self._away(colours, self._own)[:, 0]
        others = self._away(colours, self._others)
        eyes = PARTS.index("eyes")
        counted = np.ones(away.shape, bool)
        counted[closed_T, eyes] = False
        recognised = _mean(away, counted)[:, None] < _mean(others, counted[:, None])
        other_eyes = ciede2000(lab_of(colours[:, None, eyes]), lab_of(self._other_eyes)[None])
        kept = (away[:, eyes] < other_eyes.double().numpy().min(axis=1)).astype(np.float64)
        return Seen(
            away=np.where(counted, away, np.nan),
            recognised=np.asarray(recognised.all(axis=1)),
            eyes_kept=np.where(closed_T, np.nan, kept),
        )

    def _away(self, colours_TPC: NDArray[np.uint8], drawn_NPC: NDArray[np.uint8]) -> Floats:
        """Compute CIEDE2000 of every part, [T, N, parts]."""
        away = ciede2000(lab_of(colours_TPC)[:, None], lab_of(drawn_NPC)[None])
        return np.asarray(away.double().numpy())

    def _drawn(self, persons: Sequence[Identity], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Compute the colours of persons at rest, [N, parts, 3]."""
        return np.stack(
            [self._colours(Painter(p, size).draw(Pose()), Place(), np.zeros(2)) for p in persons]
        )

    def _colours(self, frame: NDArray[np.uint8], place: Place, look: Floats) -> NDArray[np.uint8]:
        """Compute the mean colour of each part, uint8 [parts, 3]."""
        height, width = frame.shape[:2]
        # Pictures taller or wider than a square have more wall and clothes at their ends.
        half = np.array([width, height]) / 2
        colours = []
        for name in PARTS:
            if name in _IN_FACE:
                inside = self._points(_IN_FACE[name]) + look * (name == "eyes")
                points = place.to_picture(inside) * self._scale
            else:
                points = self._points(_IN_PICTURE[name]) * 2 * half
            colours.append(sample(frame.astype(np.float64), points).mean(axis=0))
        return np.round(np.clip(colours, 0, 255)).astype(np.uint8)

    def _points(self, boxes: Sequence[Box]) -> Floats:
        """Sample points all over some boxes, [M, 2]."""
        grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 7)]), -1).reshape(-1, 2)
        return np.concatenate([np.array(box[:2]) + grid * box[2:] for box in boxes])


def _mean(away: Floats, counted: NDArray[np.bool_]) -> Floats:
    """Average over the parts that count."""
    return np.asarray((away * counted).sum(axis=-1) / counted.sum(axis=-1))
