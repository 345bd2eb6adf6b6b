"""Fictional persons: what about a drawn face is the same in all its pictures.

A person is a number, and looks the same in every clip, whatever its seed. `speakers` determines
which numbers training may show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np

Rgb: TypeAlias = tuple[int, int, int]
Hair = Literal["short", "parted", "fringe", "long", "bob", "bun", "curly", "buzz"]

T = TypeVar("T")

SKINS: Sequence[Rgb] = (
    (250, 219, 196), (243, 204, 176), (232, 187, 152), (217, 167, 128), (194, 140, 102),
    (169, 116, 82), (142, 95, 66), (118, 78, 56),
)  # fmt: skip
HAIRS: Sequence[Rgb] = (
    (38, 32, 36), (66, 46, 38), (104, 68, 44), (150, 98, 56), (196, 148, 84), (224, 190, 126),
    (170, 74, 40), (150, 148, 150),
)  # fmt: skip
EYES: Mapping[str, Rgb] = MappingProxyType(
    {
        "blue": (52, 118, 196),
        "green": (62, 142, 88),
        "brown": (112, 66, 34),
        "grey": (112, 128, 144),
        "amber": (176, 116, 36),
    }
)
CLOTHES: Sequence[Rgb] = (
    (58, 88, 140), (178, 70, 74), (70, 130, 110), (226, 176, 76), (120, 88, 150), (236, 232, 224),
    (74, 78, 88), (208, 124, 96), (96, 152, 184), (136, 150, 84),
)  # fmt: skip
WALLS: Sequence[Rgb] = (
    (198, 214, 226), (214, 224, 206), (232, 220, 202), (222, 208, 218), (188, 208, 206),
    (206, 202, 222), (176, 190, 204), (226, 226, 226), (168, 192, 176), (214, 196, 178),
)  # fmt: skip
_LIPS: Sequence[Rgb] = ((190, 62, 78), (174, 44, 66), (204, 78, 84))
_LARGEST_TINT = 6  # per colour channel, so that no two persons are quite alike


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A fictional person.

    Attributes:
        number: The person's number, which determines everything else.
        skin: Colour of the face.
        hair: Colour of hair and brows.
        style: Hair style.
        eyes: Name of the iris's colour, one of `EYES`.
        lips: Colour of the lips.
        clothes: Colour of the clothes.
        wall: Colour of the background.
        pattern: What is on the background: 0 nothing, 1 a window, 2 a round lamp, 3 two pictures.
        breadth: Width of the face, relative to the average.
        jaw: How little the face narrows towards the chin, 0..1.
        eye_size: Size of the eyes, relative to the average.
        brow: Thickness of the brows, relative to the average.
        mirrored: Whether parting and background are mirrored.
    """

    number: int
    skin: Rgb
    hair: Rgb
    style: Hair
    eyes: str
    lips: Rgb
    clothes: Rgb
    wall: Rgb
    pattern: int
    breadth: float
    jaw: float
    eye_size: float
    brow: float
    mirrored: bool

    @classmethod
    def of(cls, number: int) -> "Identity":
        """Create the person with a number."""
        rng = np.random.default_rng([number, 0x0FACE])

        def pick(values: Sequence[T]) -> T:
            return values[int(rng.integers(len(values)))]

        def tinted(colour: Rgb) -> Rgb:
            red, green, blue = (
                int(np.clip(c + rng.integers(-_LARGEST_TINT, _LARGEST_TINT + 1), 0, 255))
                for c in colour
            )
            return red, green, blue

        skin = tinted(pick(SKINS))
        return cls(
            number=number,
            skin=skin,
            hair=tinted(pick(HAIRS)),
            style=pick(get_args(Hair)),
            eyes=pick(tuple(EYES)),
            lips=mix(skin, tinted(pick(_LIPS)), 0.85),
            clothes=tinted(pick(CLOTHES)),
            wall=tinted(pick(WALLS)),
            pattern=int(rng.integers(4)),
            breadth=float(rng.uniform(0.94, 1.05)),
            jaw=float(rng.uniform(0.1, 1.0)),
            eye_size=float(rng.uniform(0.94, 1.08)),
            brow=float(rng.uniform(0.8, 1.3)),
            mirrored=bool(rng.integers(2)),
        )

    @property
    def iris(self) -> Rgb:
        """Colour of the iris."""
        return EYES[self.eyes]


def mix(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """Blend a fraction of another colour into a colour."""
    red, green, blue = (
        round((1 - share) * a + share * b) for a, b in zip(colour, other, strict=True)
    )
    return red, green, blue
