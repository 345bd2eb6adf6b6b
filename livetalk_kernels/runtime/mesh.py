"""Partitions work: tokens and heads over a ulysses x ring mesh, rows and columns over a grid.

Pure arithmetic, the same on every rank. Nothing is padded: if sizes do not divide evenly, the first
parts are larger by one, and every rank knows all sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from ..errors import UserError

MAX_GRID_TEXT = 9  # characters in RxC


def shares(total: int, parts: int) -> tuple[int, ...]:
    """Split ``total`` into ``parts`` sizes, as equal as possible, larger ones first."""
    small, larger = divmod(total, parts)
    return tuple(small + (index < larger) for index in range(parts))


def starts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Compute where each part starts, with the total as a final entry."""
    return tuple(accumulate(sizes, initial=0))


def factor_pairs(number: int) -> list[tuple[int, int]]:
    """List all (a, b) with a * b = number, largest a first."""
    return [(a, number // a) for a in range(number, 0, -1) if number % a == 0]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Ranks in ``ring`` groups of ``ulysses`` neighbours: rank = ring index * ulysses + place.

    Token shards are in rank order, so a Ulysses group holds one contiguous block of the sequence,
    and such blocks rotate around the rings.

    Attributes:
        ulysses: Ranks that share the heads of a block of tokens.
        ring: Number of token blocks.
    """

    ulysses: int
    ring: int

    def __post_init__(self) -> None:
        """Reject invalid sizes."""
        if self.ulysses < 1 or self.ring < 1:
            raise UserError(f"--ulysses {self.ulysses} --ring {self.ring}: both must be 1 or more")

    @classmethod
    def choose(
        cls,
        world: int,
        heads: int,
        *,
        ulysses: int | None = None,
        ring: int | None = None,
        ranks_per_node: int | None = None,
    ) -> Self:
        """Return the requested mesh, or the best one: only the ring crosses nodes.

        With neither ``ulysses`` nor ``ring`` given, ulysses is the greatest common divisor of the
        ranks per node and the heads, so that every rank has the same number of heads.

        Args:
            world: Total number of ranks.
            heads: Attention heads of the model; ulysses may not be larger.
            ulysses: Ranks that share heads; None: what ``ring`` leaves, or the best.
            ring: Number of token blocks; None: what ``ulysses`` leaves.
            ranks_per_node: Ranks on a node; by default all are on one.

        Raises:
            UserError: The sizes do not make up the world, or there are too few heads; the message
                lists valid ones.
        """
        given = " ".join(
            f"--{name} {value}"
            for name, value in (("ulysses", ulysses), ("ring", ring))
            if value is not None
        )
        if ulysses is None and ring is None:
            ulysses = math.gcd(ranks_per_node or world, world, heads)
        if ulysses is None:
            ulysses = world // max(ring or 1, 1)
        if ring is None:
            ring = world // max(ulysses, 1)
        if ulysses * ring != world or ulysses > heads:
            work = ", ".join(f"{u} x {r}" for u, r in factor_pairs(world) if u <= heads)
            ranks = f"{world} rank{'s' * (world != 1)}"
            raise UserError(
                f"{given}: does not fit {ranks} and {heads} heads; ulysses x ring can be {work}"
            )
        return cls(ulysses=ulysses, ring=ring)

    @property
    def world(self) -> int:
        """Total number of ranks."""
        return self.ulysses * self.ring

    def ulysses_groups(self) -> list[list[int]]:
        """List the groups of ranks that share heads."""
        return [
            [index * self.ulysses + place for place in range(self.ulysses)]
            for index in range(self.ring)
        ]

    def ring_groups(self) -> list[list[int]]:
        """List the groups of ranks that hold the same heads of different blocks."""
        return [
            [index * self.ulysses + place for index in range(self.ring)]
            for place in range(self.ulysses)
        ]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Ranks arranged as rows and columns of a picture: rank = row * columns + column.

    Attributes:
        rows: Parts of the height.
        columns: Parts of the width.
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        """Reject invalid sizes."""
        if self.rows < 1 or self.columns < 1:
            raise UserError(f"--vae-grid {self}: both must be 1 or more")

    @classmethod
    def choose(cls, world: int, size: tuple[int, int], given: "Grid | None" = None) -> "Grid":
        """Return the requested grid, or the one whose parts are smallest and then squarest.

        Args:
            world: Total number of ranks.
            size: Rows and columns (of a latent) to divide; every part needs at least one.
            given: The user's choice.

        Raises:
            UserError: The choice does not make up the world, or a part would be empty.
        """
        height, width = size
        fitting = [
            cls(rows=rows, columns=columns)
            for rows, columns in factor_pairs(world)
            if rows <= height and columns <= width
        ]
        if given is not None:
            if given not in fitting:
                work = ", ".join(map(str, fitting)) or "none"
                raise UserError(
                    f"--vae-grid {given}: does not fit {world} ranks and {height}x{width} latents; "
                    f"grids that do: {work}"
                )
            return given
        if not fitting:
            numbers = [
                count
                for count in range(1, height * width + 1)
                if any(r <= height and c <= width for r, c in factor_pairs(count))
            ]
            near = [n for n in numbers if n < world][-3:] + [n for n in numbers if n > world][:2]
            raise UserError(
                f"{world} ranks: no grid of them divides {height}x{width} latents; numbers that "
                f"do: {', '.join(map(str, near))}"
            )

        def cost(grid: "Grid") -> tuple[int, int]:
            rows, columns = -(-height // grid.rows), -(-width // grid.columns)
            border = rows * min(2, grid.columns - 1) + columns * min(2, grid.rows - 1)
            return rows * columns, border  # the slowest rank's work, then its communication

        return min(fitting, key=cost)

    @classmethod
    def parse(cls, text: str) -> "Grid":
        """Parse ``RxC``.

        Raises:
            UserError: The text has another form.
        """
        rows, cross, columns = text.lower().partition("x")
        digits = cross and rows.isdecimal() and columns.isdecimal()
        if not digits or len(text) > MAX_GRID_TEXT:
            raise UserError(f"--vae-grid {text:.40}: write rows x columns, for example 4x2")
        return cls(rows=int(rows), columns=int(columns))

    @property
    def world(self) -> int:
        """Total number of ranks."""
        return self.rows * self.columns

    def position(self, rank: int) -> tuple[int, int]:
        """Return the row and column of a rank."""
        return divmod(rank, self.columns)

    def rank(self, row: int, column: int) -> int | None:
        """Return the rank at a position; None outside the grid."""
        inside = 0 <= row < self.rows and 0 <= column < self.columns
        return row * self.columns + column if inside else None

    def __str__(self) -> str:
        """Format as on the command line."""
        return f"{self.rows}x{self.columns}"
