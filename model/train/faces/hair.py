"""Outlines of heads and of the hair on them, in face coordinates; see `painter`."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .identity import Identity

Points: TypeAlias = NDArray[np.float64]

_HALF, _ABOVE, _BELOW = 0.236, 0.3, 0.325  # of a head: half its width, height above and below 0


def head_outline(person: Identity, *, jaw: float = 0.0, grown: float = 1.0) -> Points:
    """Compute the outline of the face, [64, 2].

    Args:
        person: The person.
        jaw: How far the jaw is lowered.
        grown: Scale of the upper part, for the hair on it.
    """
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    sine, cosine = np.sin(angle), np.cos(angle)
    down = np.clip(sine, 0, None)
    narrow = 1 - (0.24 - 0.12 * person.jaw) * down**2
    x = _HALF * person.breadth * grown * np.sign(cosine) * np.abs(cosine) ** 0.9 * narrow
    y = np.where(sine < 0, _ABOVE * grown * sine, (_BELOW + jaw) * sine) - 0.03
    return np.stack([x, y], -1)


def half_face(person: Identity, y: Points) -> Points:
    """Compute half of the face's width at a height below the eyes."""
    down = np.clip((y + 0.03) / _BELOW, 0, 1)
    narrow = 1 - (0.24 - 0.12 * person.jaw) * down**2
    return _HALF * person.breadth * np.sqrt(1 - down**2) ** 0.9 * narrow


def back_hair(person: Identity) -> list[Points]:
    """Compute outlines of what is visible behind head and shoulders."""
    breadth = _HALF * person.breadth
    if person.style == "long":
        return [_fall(1.22 * breadth, 1.32 * breadth, 0.46)]
    if person.style == "bob":
        return [_fall(1.2 * breadth, 1.26 * breadth, 0.27)]
    if person.style == "curly":
        angle = np.linspace(0.92 * np.pi, 2.08 * np.pi, 11)
        return [_disc(1.06 * breadth * np.cos(a), 0.28 * np.sin(a) - 0.03, 0.085) for a in angle]
    if person.style == "bun":
        return [_disc(0.0, -0.39, 0.1)]
    return []


def front_hair(person: Identity) -> list[tuple[Points, float]]:
    """Compute what is in front of the forehead: outlines, and how light each is."""
    side = -1 if person.mirrored else 1
    t = np.linspace(-1, 1, 41)
    style = person.style
    grown = {"buzz": 1.03, "curly": 1.09, "short": 1.07, "bun": 1.05}.get(style, 1.1)
    if style == "buzz":
        line = -0.205 + 0.06 * t**6
    elif style == "fringe":
        line = -0.172 + 0.012 * np.cos(14 * t) + 0.05 * t**8
    elif style in ("parted", "bob"):
        line = -0.235 + 0.1 * np.clip(side * t + 0.35, 0, None) ** 1.5 + 0.05 * np.abs(t) ** 8
        line = np.where(side * t < -0.35, line + 0.1 * np.clip(-side * t - 0.35, 0, None), line)
    elif style == "curly":
        line = -0.195 + 0.014 * np.cos(17 * t) + 0.04 * t**4
    elif style == "long":
        line = -0.25 + 0.17 * np.abs(t) ** 1.6
    else:
        line = -0.215 + 0.07 * t**4 - 0.014 * side * t
    breadth = _HALF * person.breadth
    down = {"short": -0.02, "parted": 0.0, "fringe": 0.0, "long": 0.1, "bob": 0.12}.get(
        style, -0.05
    )
    cap = _cap(breadth, grown, line, down)
    light = _cap(breadth * 0.8, grown * 0.985, np.minimum(line - 0.03, -0.27 * grown), -0.2)
    return [(cap, 0.0), (_glint(light, side), 0.13)]


def _cap(breadth: float, grown: float, line: Points, down: float) -> Points:
    """Outline hair from the top of the head to a line across the forehead, and down both sides."""
    start = np.arcsin(np.clip((down + 0.03) / (_ABOVE * grown), -1, 1))
    angle = np.linspace(np.pi - start, 2 * np.pi + start, 41)
    x = breadth * grown * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.9
    outer = np.stack([x, _ABOVE * grown * np.sin(angle) - 0.03], -1)
    t = np.linspace(1, -1, len(line))
    inner = np.stack([0.9 * breadth * t, line[::-1]], -1)
    right, left = outer[-1] * [0.93, 1.0], outer[0] * [0.93, 1.0]
    return np.concatenate([outer, right[None], inner, left[None]])


def _glint(cap: Points, side: int) -> Points:
    """Outline a highlight on hair."""
    angle = np.linspace(1.28 * np.pi, 1.45 * np.pi, 15)
    if side > 0:
        angle = 3 * np.pi - angle
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.concatenate([ring * [0.2, 0.275], (ring * [0.2, 0.247])[::-1]]) - [0.0, 0.03]


def _fall(above: float, below: float, end: float) -> Points:
    """Outline hair from the top of the head down to an end."""
    angle = np.linspace(np.pi, 2 * np.pi, 33)
    top = np.stack([above * np.cos(angle), 0.33 * np.sin(angle) - 0.03], -1)
    t = np.linspace(0, 1, 12)[:, None]
    right = np.hstack([above + (below - above) * t - 0.05 * t**6, -0.03 + (end + 0.03) * t])
    return np.concatenate([top, right, right[::-1] * [-1, 1]])


def _disc(x: float, y: float, radius: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], -1)
