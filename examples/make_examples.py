"""Draws portrait.png and what the package brings: `python examples/make_examples.py`.

The portraits need Pillow alone; the speech needs the program espeak-ng.
"""

import math
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from livetalk_model.bundled import SPEECH
from livetalk_model.media.audio import SAMPLE_RATE, AudioReader
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.painter import Painter, Pose

FOLDER = Path(__file__).resolve().parent
PERSONS = {"ada": 27, "ben": 1, "carl": 34, "dora": 404}
"""Bundled portraits, by the numbers that `train.faces.cast` splits: training never sees dora."""
SIDE = 192
WIDTH, HEIGHT = 448, 768
SCALE = 3
"""The picture is drawn this much larger and scaled down, for smooth edges."""

TEXT = (
    "Hello! I am a drawing, and my voice is made by a machine. "
    "livetalk makes every portrait talk, live."
)
PEAK = 0.7
"""Largest sample of the speech, of full scale."""

Point = tuple[float, float]
Colour = tuple[int, int, int]

SKIN, SKIN_SHADE, BLUSH = (236, 188, 156), (206, 148, 116), (228, 138, 120)
HAIR, HAIR_LIGHT = (62, 40, 34), (104, 68, 52)
LIP, LIP_DARK = (206, 100, 96), (176, 76, 78)
IRIS, PUPIL, EYE_WHITE = (84, 120, 110), (26, 24, 30), (250, 248, 244)
COAT, COAT_SHADE, SHIRT = (38, 78, 104), (28, 58, 80), (240, 236, 226)
WALL_TOP, WALL_BOTTOM, GLOW = (206, 218, 214), (150, 174, 178), (246, 236, 214)


class Canvas:
    """A picture in units of the final size, drawn `SCALE` times larger."""

    _size = (WIDTH * SCALE, HEIGHT * SCALE)

    def __init__(self) -> None:
        """Start with a wall that darkens downwards."""
        ramp = Image.linear_gradient("L").resize(self._size)
        self.image = Image.composite(
            Image.new("RGB", self._size, WALL_BOTTOM), Image.new("RGB", self._size, WALL_TOP), ramp
        )

    def mask(self, *shapes: Iterable[Point], blur: float = 0.0) -> Image.Image:
        """The union of polygons as coverage 0 to 255, its edge softened."""
        mask = Image.new("L", self._size)
        draw = ImageDraw.Draw(mask)
        for shape in shapes:
            draw.polygon([(x * SCALE, y * SCALE) for x, y in shape], fill=255)
        return mask.filter(ImageFilter.GaussianBlur(blur * SCALE)) if blur else mask

    def fill(
        self,
        mask: Image.Image,
        colour: Colour,
        opacity: float = 1.0,
        within: Image.Image | None = None,
    ) -> None:
        """Lay a colour over what a mask covers, and another mask as well where one is given."""
        if within is not None:
            mask = ImageChops.multiply(mask, within)
        if opacity < 1:
            mask = mask.point(lambda value: round(value * opacity))
        self.image.paste(colour, (0, 0), mask)

    def smooth(self) -> Image.Image:
        """The picture at its final size."""
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def curve(points: Sequence[Point], *, closed: bool = True, steps: int = 24) -> list[Point]:
    """A smooth line through points (a uniform Catmull-Rom spline)."""
    count = len(points)
    spans = count if closed else count - 1
    line = []
    for start in range(spans):
        corners = [
            points[(start + k) % count] if closed else points[min(max(start + k, 0), count - 1)]
            for k in (-1, 0, 1, 2)
        ]
        for step in range(steps):
            line.append(_between(corners, step / steps))
    return line if closed else [*line, points[-1]]


def _between(corners: Sequence[Point], t: float) -> Point:
    weights = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    x = sum(weight * corner[0] for weight, corner in zip(weights, corners, strict=True))
    y = sum(weight * corner[1] for weight, corner in zip(weights, corners, strict=True))
    return x, y


def mirrored(points: list[Point]) -> list[Point]:
    """A closed outline from its right half, listed from top to bottom."""
    return points + [(WIDTH - x, y) for x, y in reversed(points) if x != WIDTH / 2]


def ellipse(x: float, y: float, a: float, b: float, tilt: float = 0.0) -> list[Point]:
    """An ellipse with half axes a and b, turned by `tilt` degrees."""
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    angles = [2 * math.pi * k / 96 for k in range(96)]
    return [
        (
            x + a * math.cos(t) * cos - b * math.sin(t) * sin,
            y + a * math.cos(t) * sin + b * math.sin(t) * cos,
        )
        for t in angles
    ]


def stroke(points: Sequence[Point], thickness: float, *, taper: bool = True) -> list[Point]:
    """A brush line along a smooth curve, thickest in its middle."""
    line = curve(points, closed=False)
    left, right = [], []
    for k, (x, y) in enumerate(line):
        before, after = line[max(k - 1, 0)], line[min(k + 1, len(line) - 1)]
        dx, dy = after[0] - before[0], after[1] - before[1]
        length = math.hypot(dx, dy) or 1.0
        t = k / (len(line) - 1)
        half = thickness / 2 * (math.sin(math.pi * t) ** 0.6 if taper else 1.0)
        left.append((x - dy / length * half, y + dx / length * half))
        right.append((x + dy / length * half, y - dx / length * half))
    return left + right[::-1]


FACE = curve(
    mirrored(
        [
            (224, 190),
            (280, 200),
            (322, 246),
            (331, 312),
            (324, 376),
            (300, 432),
            (262, 470),
            (224, 480),
        ]
    )
)
NECK = [(178, 420), (270, 420), (272, 520), (300, 556), (224, 620), (148, 556), (176, 520)]
SHOULDERS = curve(
    mirrored(
        [
            (224, 548),
            (290, 546),
            (352, 572),
            (408, 608),
            (446, 668),
            (470, 800),
            (224, 830),
        ]
    )
)


def draw_portrait() -> Image.Image:
    """A friendly face from the front, RGB, 448 x 768."""
    canvas = Canvas()
    canvas.fill(canvas.mask(ellipse(224, 300, 230, 290), blur=60), GLOW, 0.85)
    draw_back_hair(canvas)
    draw_body(canvas)
    draw_head(canvas)
    for side in (-1, 1):
        draw_eye(canvas, side)
    draw_nose(canvas)
    draw_mouth(canvas)
    draw_front_hair(canvas)
    return canvas.smooth()


def draw_back_hair(canvas: Canvas) -> None:
    """The hair behind neck and shoulders."""
    outline = curve(
        mirrored(
            [
                (224, 112),
                (300, 126),
                (356, 186),
                (376, 280),
                (378, 380),
                (386, 460),
                (374, 540),
                (326, 578),
                (224, 560),
            ]
        )
    )
    hair = canvas.mask(outline)
    canvas.fill(canvas.mask(outline, blur=12), (60, 70, 74), 0.25)
    canvas.fill(hair, HAIR)
    for side in (-1, 1):
        for offset, light in ((132, 0.5), (146, 0.3), (118, 0.25)):
            x = 224 + side * offset
            lock = stroke([(x - side * 14, 250), (x, 360), (x + side * 6, 460), (x, 556)], 9)
            canvas.fill(canvas.mask(lock, blur=2.5), HAIR_LIGHT, light, hair)


def draw_body(canvas: Canvas) -> None:
    """Neck, shirt and coat."""
    canvas.fill(canvas.mask(SHOULDERS, blur=10), (50, 60, 66), 0.3)
    coat = canvas.mask(SHOULDERS)
    canvas.fill(coat, COAT)
    canvas.fill(
        canvas.mask(ellipse(60, 720, 90, 160, 20), ellipse(388, 720, 90, 160, -20), blur=30),
        COAT_SHADE,
        0.9,
        coat,
    )
    canvas.fill(canvas.mask([(150, 545), (298, 545), (224, 726)]), SHIRT)
    canvas.fill(canvas.mask([(150, 545), (298, 545), (224, 726)], blur=1), (222, 216, 204), 0.25)
    neck = canvas.mask(curve(NECK), curve([(160, 552), (288, 552), (224, 640)]))
    canvas.fill(neck, SKIN)
    canvas.fill(canvas.mask(ellipse(224, 452, 84, 56), blur=12), SKIN_SHADE, 0.75, neck)
    for side in (-1, 1):
        lapel = [
            (224 + side * x, y) for x, y in ((66, 540), (96, 556), (70, 660), (0, 770), (0, 720))
        ]
        canvas.fill(canvas.mask(lapel, blur=4), (16, 36, 52), 0.35, coat)
        canvas.fill(canvas.mask(lapel), (46, 92, 120))


def draw_head(canvas: Canvas) -> None:
    """Ears, face, its shading and the cheeks."""
    for side in (-1, 1):
        ear = canvas.mask(ellipse(224 + side * 108, 330, 17, 34, side * 8))
        canvas.fill(ear, SKIN)
        canvas.fill(
            canvas.mask(ellipse(224 + side * 112, 332, 8, 20, side * 8), blur=3),
            SKIN_SHADE,
            0.7,
            ear,
        )
    face = canvas.mask(FACE)
    canvas.fill(face, SKIN)
    inside = canvas.mask(ellipse(218, 330, 92, 138), blur=26)
    canvas.fill(ImageChops.invert(inside), SKIN_SHADE, 0.55, face)
    canvas.fill(canvas.mask(ellipse(206, 250, 54, 30), blur=18), (250, 218, 192), 0.8, face)
    canvas.fill(canvas.mask(ellipse(224, 452, 24, 12), blur=8), (248, 210, 182), 0.6, face)
    for side in (-1, 1):
        cheek = canvas.mask(ellipse(224 + side * 62, 382, 30, 21), blur=13)
        canvas.fill(cheek, BLUSH, 0.5, face)


def draw_eye(canvas: Canvas, side: int) -> None:
    """One eye with its brow; side -1 is the left one in the picture."""
    x, y = 224 + side * 46, 324

    def at(points: list[Point]) -> list[Point]:
        return [(x + side * dx, y + dy) for dx, dy in points]

    canvas.fill(canvas.mask(ellipse(x, y - 8, 34, 18), blur=9), SKIN_SHADE, 0.5)
    almond = curve(at([(-26, 5), (-14, -10), (2, -15), (18, -9), (28, 2), (14, 12), (-6, 13)]))
    eye = canvas.mask(almond)
    canvas.fill(eye, EYE_WHITE)
    canvas.fill(
        canvas.mask(at([(-34, -22), (34, -22), (34, -7), (-34, -7)]), blur=4),
        (150, 150, 160),
        0.6,
        eye,
    )
    canvas.fill(canvas.mask(ellipse(x, y - 1, 13.5, 13.5)), (44, 66, 62), 1.0, eye)
    canvas.fill(canvas.mask(ellipse(x, y - 1, 12, 12)), IRIS, 1.0, eye)
    canvas.fill(canvas.mask(ellipse(x, y + 5, 9, 6), blur=2.5), (150, 186, 166), 0.8, eye)
    canvas.fill(canvas.mask(ellipse(x, y - 1, 6, 6)), PUPIL, 1.0, eye)
    canvas.fill(canvas.mask(ellipse(x - 4.5, y - 6, 3.4, 3.8)), (255, 255, 255), 0.95, eye)
    canvas.fill(canvas.mask(ellipse(x + 5, y + 4, 1.7, 1.7)), (255, 255, 255), 0.7, eye)
    lid = stroke(at([(-28, 6), (-15, -10), (2, -15.5), (19, -9.5), (33, -1)]), 5.5)
    canvas.fill(canvas.mask(lid), (50, 32, 30))
    fold = stroke(at([(-24, -9), (-10, -20), (4, -23), (20, -17), (30, -9)]), 2.4)
    canvas.fill(canvas.mask(fold, blur=0.6), (170, 112, 90), 0.8)
    lower = stroke(at([(-18, 11), (-4, 14.5), (12, 13), (26, 4)]), 1.8)
    canvas.fill(canvas.mask(lower, blur=0.5), (150, 92, 78), 0.7)
    brow = stroke(at([(-30, -36), (-14, -45), (6, -48), (24, -44), (38, -33)]), 8.5)
    canvas.fill(canvas.mask(brow, blur=0.9), HAIR, 0.92)


def draw_nose(canvas: Canvas) -> None:
    """Bridge, tip and nostrils."""
    ridge = stroke([(234, 318), (236, 350), (243, 378), (240, 392)], 9)
    canvas.fill(canvas.mask(ridge, blur=5), SKIN_SHADE, 0.55)
    canvas.fill(canvas.mask(ellipse(222, 352, 5, 34), blur=5), (250, 220, 196), 0.75)
    canvas.fill(canvas.mask(ellipse(222, 384, 10, 8), blur=5), (252, 222, 200), 0.8)
    below = stroke([(200, 391), (210, 399), (224, 402), (238, 399), (248, 391)], 6)
    canvas.fill(canvas.mask(below, blur=2), (190, 120, 98), 0.7)
    for side in (-1, 1):
        nostril = ellipse(224 + side * 11, 396, 5.5, 2.6, side * -14)
        canvas.fill(canvas.mask(nostril, blur=0.8), (140, 76, 66), 0.85)
        wing = stroke([(224 + side * 20, 380), (224 + side * 26, 389), (224 + side * 20, 397)], 3)
        canvas.fill(canvas.mask(wing, blur=1), (188, 122, 98), 0.7)


def draw_mouth(canvas: Canvas) -> None:
    """A small smile with lips a little open."""
    upper = curve(
        [
            (180, 425),
            (200, 423),
            (214, 420),
            (224, 423),
            (234, 420),
            (248, 423),
            (268, 425),
            (247, 434),
            (224, 437),
            (201, 434),
        ],
        steps=12,
    )
    lower = curve(
        [
            (184, 428),
            (203, 437),
            (224, 441),
            (245, 437),
            (264, 428),
            (247, 448),
            (224, 455),
            (201, 448),
        ],
        steps=12,
    )
    canvas.fill(canvas.mask(ellipse(224, 460, 26, 6), blur=5), SKIN_SHADE, 0.6)
    canvas.fill(
        canvas.mask(stroke([(178, 424), (201, 435), (224, 439), (247, 435), (270, 424)], 7)),
        (92, 34, 40),
    )
    canvas.fill(canvas.mask(upper, blur=0.5), LIP_DARK)
    canvas.fill(canvas.mask(lower, blur=0.5), LIP)
    canvas.fill(canvas.mask(ellipse(221, 447, 17, 2.6), blur=3), (236, 160, 150), 0.65)
    for side in (-1, 1):
        corner = stroke(
            [(224 + side * 43, 430), (224 + side * 49, 423), (224 + side * 50, 415)], 3.4
        )
        canvas.fill(canvas.mask(corner, blur=1.2), (176, 104, 86), 0.7)


def draw_front_hair(canvas: Canvas) -> None:
    """A parting on one side, hair that frames the face."""
    top = [
        (178, 186),
        (150, 214),
        (126, 262),
        (115, 316),
        (110, 380),
        (100, 450),
        (78, 500),
        (70, 400),
        (74, 290),
        (92, 200),
        (140, 136),
        (210, 110),
        (284, 122),
        (344, 176),
        (372, 262),
        (379, 380),
        (372, 500),
        (349, 450),
        (339, 380),
        (334, 310),
        (318, 258),
        (286, 226),
        (238, 208),
        (204, 190),
    ]
    outline = curve(top)
    canvas.fill(
        canvas.mask([(x, y + 7) for x, y in outline], blur=7),
        (120, 72, 56),
        0.45,
        canvas.mask(FACE),
    )
    hair = canvas.mask(outline)
    canvas.fill(hair, HAIR)
    locks = [
        [(186, 176), (150, 190), (116, 240), (98, 320)],
        [(186, 150), (136, 170), (104, 226), (88, 300)],
        [(196, 168), (256, 186), (310, 216), (344, 290)],
        [(206, 144), (274, 154), (330, 200), (356, 280)],
        [(214, 126), (280, 134), (336, 176), (362, 250)],
    ]
    for number, points in enumerate(locks):
        lock = canvas.mask(stroke(points, 10 if number % 2 else 6), blur=3)
        canvas.fill(lock, HAIR_LIGHT, 0.6, hair)
    shine = canvas.mask(stroke([(232, 140), (292, 158), (338, 214)], 15), blur=8)
    canvas.fill(shine, (150, 104, 80), 0.45, hair)


def speak(text: str, path: Path) -> None:
    """Speak a text with espeak-ng into a 16-bit mono WAV file at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder) / "spoken.wav"
        voice = ["-v", "en-us+f4", "-s", "172", "-p", "45", "-g", "2"]
        subprocess.run(["espeak-ng", *voice, "-w", str(spoken), text], check=True)
        with AudioReader(spoken) as reader:
            samples = np.concatenate(list(reader))
    samples = samples * (PEAK / np.abs(samples).max())
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())


def main() -> None:
    """Make the portrait beside this script, and what lies in the package."""
    draw_portrait().save(FOLDER / "portrait.png", optimize=True)
    for name, number in PERSONS.items():
        drawn = Painter(Identity.of(number), (SIDE, SIDE)).draw(Pose())
        Image.fromarray(drawn).save(SPEECH.with_name(f"{name}.png"), optimize=True)
    speak(TEXT, SPEECH)


if __name__ == "__main__":
    main()
