"""Draws a talking face: smooth shapes at four times the size, then scaled down.

Coordinates are fractions of the picture's shorter side, from its centre, x to the right and y down;
face coordinates turn and move with the head.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .hair import back_hair, front_hair, head_outline
from .identity import Identity, Rgb, mix

Points: TypeAlias = NDArray[np.float64]

OVERSAMPLED = 4
EYE_X, EYE_Y = 0.112, -0.045
"""Centre of an eye in the face."""
EYE_WIDTH, EYE_HEIGHT = 0.066, 0.047
"""Half of an open eye's width, and its height above the centre."""
IRIS = 0.037
"""Radius of the iris."""
GAZE_X, GAZE_Y = 0.022, 0.016
"""Displacement of the iris at a gaze of 1."""
MOUTH_Y = 0.165
NARROWEST, WIDEST = 0.05, 0.115
"""Half of the mouth's width at width 0 and 1."""
TALLEST = 0.125
"""Height of the mouth's inside at an opening of 1."""
LINE = 0.007
"""The same for a closed mouth."""
INSIDE: Rgb = (74, 20, 32)
TEETH: Rgb = (250, 248, 242)
TONGUE: Rgb = (158, 58, 68)
WHITE: Rgb = (252, 252, 250)
PUPIL: Rgb = (22, 20, 24)
PIVOT = np.array([0.0, 0.33])
"""Pivot of the head."""
NEARER = np.array([0.3, 0.15])
"""Fraction of the head's motion by which eyes, nose and mouth move further, being nearer."""

_FOLLOWS = 0.3  # fraction of the head's motion that the shoulders follow
_LIP = 0.02


@dataclass(frozen=True, kw_only=True)
class Pose:
    """What changes in a face from frame to frame, in the order of a clip's truth.

    Attributes:
        opening: Opening of the mouth, 0 closed to 1.
        width: Width of the mouth, 0 rounded to 1 spread.
        smile: How far the corners of the mouth are raised, -1..1.
        blink: 0 for open eyes to 1 for closed ones.
        gaze_x: Horizontal gaze, -1 left (in the picture) to 1.
        gaze_y: Vertical gaze, -1 up to 1 down.
        sway_x: The head's position, as a fraction of the picture's shorter side.
        sway_y: The same, downwards.
        roll: The head's rotation in radians, clockwise.
    """

    opening: float = 0.0
    width: float = 0.5
    smile: float = 0.0
    blink: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    sway_x: float = 0.0
    sway_y: float = 0.0
    roll: float = 0.0


class Painter:
    """Draws one person at one size."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Draw what never moves.

        Args:
            person: The person.
            size: Picture's (H, W).
        """
        self.person, self.size = person, size
        height, width = size
        self._scale = float(min(size) * OVERSAMPLED)
        self._centre = np.array([width, height]) * OVERSAMPLED / 2
        self._shade = mix(person.skin, (120, 44, 40), 0.22)
        self._wall = self._background()

    def draw(self, pose: Pose) -> NDArray[np.uint8]:
        """Draw a frame, uint8 [H, W, 3]."""
        self._image = self._wall.copy()
        self._draw = ImageDraw.Draw(self._image)
        self._place(pose)
        person, shade = self.person, self._shade
        for shape in back_hair(person):
            self._fill(self._head(shape), mix(person.hair, (20, 16, 20), 0.25))
        self._body()
        for side in (-1, 1):
            self._fill(self._head(_ellipse(side * 0.247 * person.breadth, 0.0, 0.036, 0.06)), shade)
        outline = head_outline(person, jaw=0.02 * pose.opening)
        self._fill(self._head(outline), person.skin)
        self._cheeks()
        for shape, light in front_hair(person):
            self._fill(self._head(shape), mix(person.hair, (255, 240, 220), light))
        self._nose()
        for side in (-1, 1):
            self._eye(side, pose)
        self._mouth(pose)
        return np.asarray(self._image.reduce(OVERSAMPLED))

    def _place(self, pose: Pose) -> None:
        self._turn = turned(pose.roll)
        self._shift = np.array([pose.sway_x, pose.sway_y])

    def _head(self, points: Points) -> Points:
        """Convert face coordinates to the picture's pixels, oversampled."""
        placed = (points - PIVOT) @ self._turn + PIVOT + self._shift
        return placed * self._scale + self._centre

    def _front(self, points: Points) -> Points:
        """Convert coordinates at the front of the head likewise."""
        return self._head(points + NEARER * self._shift)

    def _fill(self, points: Points, colour: Rgb) -> None:
        self._draw.polygon(points.ravel().tolist(), fill=colour)

    def _background(self) -> Image.Image:
        height, width = (side * OVERSAMPLED for side in self.size)
        wall = np.array(self.person.wall, np.float64)
        light = np.linspace(1.04, 0.9, height)[:, None, None]
        pixels = np.clip(np.broadcast_to(wall * light, (height, width, 3)), 0, 255)
        image = Image.fromarray(pixels.astype(np.uint8))
        draw, side = ImageDraw.Draw(image), -1 if self.person.mirrored else 1

        def fill(points: Points, colour: Rgb) -> None:
            draw.polygon((points * self._scale + self._centre).ravel().tolist(), fill=colour)

        bright, dark = (mix(self.person.wall, c, 0.35) for c in ((255, 255, 255), (90, 84, 96)))
        if self.person.pattern == 1:
            fill(_box(side * 0.4, -0.28, 0.13, 0.19), dark)
            fill(_box(side * 0.4, -0.28, 0.115, 0.175), bright)
            fill(_box(side * 0.4, -0.28, 0.008, 0.175), dark)
        elif self.person.pattern == 2:
            fill(_ellipse(side * 0.4, -0.32, 0.1, 0.1), bright)
        elif self.person.pattern == 3:
            for y, colour in ((-0.36, dark), (-0.12, bright)):
                fill(_box(side * 0.41, y, 0.075, 0.095), colour)
        return image

    def _body(self) -> None:
        person, shift = self.person, self._shift * [_FOLLOWS, 0.0]

        def place(points: Points) -> Points:
            return (points + shift) * self._scale + self._centre

        t = np.linspace(-1, 1, 25)[:, None]
        top = 0.4 + 0.13 * np.abs(t) ** 2.6
        below = self.size[0] / min(self.size)  # beyond the lower edge, even of a tall picture
        body = np.concatenate([np.hstack([0.42 * t, top]), [[0.46, below], [-0.46, below]]])
        self._fill(place(body), person.clothes)
        collar = np.hstack([0.12 * t, 0.405 + 0.055 * (1 - t**2)])
        corners = [[0.12, 0.385], [-0.12, 0.385]]
        self._fill(
            place(np.concatenate([collar, corners])), mix(person.clothes, (255, 255, 255), 0.25)
        )
        # The neck joins both: its upper end follows the head, its lower one the shoulders.
        bend = np.linspace(0, 1, 9)[:, None]
        sides = [
            (1 - bend) * self._head(np.array([[x, 0.2]])) + bend * place(np.array([[x * 1.1, 0.4]]))
            for x in (-0.088, 0.088)
        ]
        bottom = place(np.hstack([0.097 * t, 0.4 + 0.04 * (1 - t**2)]))
        self._fill(np.concatenate([sides[0], bottom, sides[1][::-1]]), self._shade)

    def _cheeks(self) -> None:
        blush = mix(self.person.skin, (226, 84, 84), 0.16)
        for side in (-1, 1):
            self._fill(self._front(_ellipse(side * 0.148, 0.082, 0.042, 0.028)), blush)

    def _nose(self) -> None:
        nose = np.array(
            [[-0.008, -0.005], [0.008, -0.005], [0.03, 0.07], [0.0, 0.082], [-0.03, 0.07]]
        )
        self._fill(self._front(nose), mix(self.person.skin, self._shade, 0.45))
        self._fill(
            self._front(_ellipse(0.0, 0.068, 0.028, 0.017)),
            mix(self.person.skin, self._shade, 0.75),
        )

    def _eye(self, side: int, pose: Pose) -> None:
        person = self.person
        width, height = EYE_WIDTH * person.eye_size, EYE_HEIGHT * person.eye_size
        t = np.linspace(-1, 1, 21)
        arch = (1 - t**2) ** 0.7
        x = side * EYE_X + width * t
        open_share = 1 - pose.blink
        low = EYE_Y + 0.62 * height * arch
        high = low - (1.62 * height * arch) * open_share
        self._fill(
            self._front(_band(x, EYE_Y - height * arch - 0.008, low)),
            mix(person.skin, self._shade, 0.6),
        )
        opened = self._front(_band(x, high, low))
        first = np.floor(opened.min(axis=0)).astype(int)
        extent = np.ceil(opened.max(axis=0)).astype(int) - first + 1
        ball = Image.new("RGB", (int(extent[0]), int(extent[1])), WHITE)
        mask = Image.new("L", ball.size, 0)
        ImageDraw.Draw(mask).polygon((opened - first).ravel().tolist(), fill=255)
        inner, radius = ImageDraw.Draw(ball), IRIS * person.eye_size
        ix = side * EYE_X + GAZE_X * pose.gaze_x
        iy = EYE_Y - 0.006 + GAZE_Y * pose.gaze_y
        rings = (
            (0.0, 0.0, 1.0, mix(person.iris, (0, 0, 0), 0.45)),
            (0.0, 0.0, 0.84, person.iris),
            (0.0, 0.0, 0.42, PUPIL),
            (-0.3, -0.36, 0.24, (255, 255, 255)),
        )
        for dx, dy, share, colour in rings:
            ring = _ellipse(ix + dx * radius, iy + dy * radius, share * radius, share * radius)
            inner.polygon((self._front(ring) - first).ravel().tolist(), fill=colour)
        self._image.paste(ball, (int(first[0]), int(first[1])), mask)
        lash = 0.006 + 0.008 * (1 - t**2) ** 0.5
        self._fill(
            self._front(_band(x, high - lash, high + 0.003)), mix(person.hair, (20, 14, 14), 0.75)
        )
        brow = EYE_Y - 0.092 - 0.018 * (1 - (t + side * 0.2) ** 2)
        thick = 0.011 * person.brow * (1.15 - 0.45 * side * t)
        self._fill(
            self._front(_band(side * EYE_X + 1.05 * width * t, brow - thick, brow + thick)),
            mix(person.hair, (30, 22, 20), 0.35),
        )

    def _mouth(self, pose: Pose) -> None:
        lips = self.person.lips
        t = np.linspace(-1, 1, 33)
        half = NARROWEST + (WIDEST - NARROWEST) * pose.width
        height = LINE + TALLEST * pose.opening
        round_share = 1 - pose.width
        arch = np.clip(1 - t**2, 0, None)
        middle = MOUTH_Y - 0.024 * pose.smile * (t**2 - 0.5)
        top = middle - 0.3 * height * arch**0.5
        bottom = middle + 0.7 * height * arch**0.5
        outer = t * (half + 0.014)
        bow = 1 - 0.28 * np.exp(-((t / 0.16) ** 2))
        upper = _LIP * (0.85 + 0.35 * round_share) * arch**0.6 * bow
        lower = _LIP * (1.2 + 0.3 * round_share) * arch**0.6
        self._fill(self._front(_band(outer, top - upper, bottom + lower)), lips)
        gloss = mix(lips, (255, 255, 255), 0.22)
        self._fill(
            self._front(_band(0.5 * outer, bottom + 0.35 * lower, bottom + 0.7 * lower)), gloss
        )
        inner = t * half
        self._fill(self._front(_band(inner, top, bottom)), INSIDE)
        if pose.opening > 0.2:
            rise = np.clip(0.34 * height * np.clip(1 - (t / 0.62) ** 2, 0, None) ** 0.5, 0, None)
            tongue = _band(inner, bottom - rise, bottom)
            self._fill(self._front(tongue), TONGUE)
        teeth = np.clip(np.minimum(0.03, 0.52 * (height - LINE)), 0, None)
        if teeth > 0.003:
            edge = np.minimum(top + teeth * np.clip(1 - np.abs(t) ** 6, 0, None), bottom)
            self._fill(self._front(_band(inner * 0.93, top, edge)), TEETH)


def picture_points(size: tuple[int, int]) -> Points:
    """Compute the coordinates of all pixels of a picture (H, W), [H, W, 2]."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] + 0.5
    return np.stack([columns - width / 2, rows - height / 2], -1) / min(size)


def turned(roll: float) -> Points:
    """Compute the matrix that rotates rows of points clockwise."""
    sine, cosine = np.sin(roll), np.cos(roll)
    return np.array([[cosine, sine], [-sine, cosine]])


def _band(x: Points, top: Points, bottom: Points) -> Points:
    """Outline the area between two curves over the same x, [2 n, 2]."""
    return np.concatenate([np.stack([x, top], -1), np.stack([x, bottom], -1)[::-1]])


def _ellipse(x: float, y: float, width: float, height: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], -1)


def _box(x: float, y: float, width: float, height: float) -> Points:
    return np.array(
        [
            [x - width, y - height],
            [x + width, y - height],
            [x + width, y + height],
            [x - width, y + height],
        ]
    )
