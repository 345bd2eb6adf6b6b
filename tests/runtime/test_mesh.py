"""Meshes and grids: arithmetic, and errors that list what works."""

import math

import pytest

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Grid, Mesh, factor_pairs, shares, starts


@pytest.mark.parametrize(("total", "parts"), [(12096, 8), (10, 4), (3, 5), (0, 2), (7, 1)])
def test_shares_are_fair_and_whole(total: int, parts: int) -> None:
    sizes = shares(total, parts)
    assert sum(sizes) == total and len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    assert list(sizes) == sorted(sizes, reverse=True)
    assert starts(sizes)[0] == 0 and starts(sizes)[-1] == total


@pytest.mark.parametrize("world", range(1, 17))
@pytest.mark.parametrize("heads", [4, 12, 40])
def test_auto_gives_every_rank_equal_heads(world: int, heads: int) -> None:
    mesh = Mesh.choose(world, heads)
    assert mesh.world == world
    assert mesh.ulysses == math.gcd(world, heads)


def test_only_the_ring_crosses_nodes() -> None:
    mesh = Mesh.choose(16, 40, ranks_per_node=8)
    assert (mesh.ulysses, mesh.ring) == (8, 2)
    assert all(len({rank // 8 for rank in group}) == 1 for group in mesh.ulysses_groups())


@pytest.mark.parametrize(("ulysses", "ring"), [(2, None), (None, 3), (2, 3)])
def test_what_is_given_is_kept(ulysses: int | None, ring: int | None) -> None:
    mesh = Mesh.choose(6, 4, ulysses=ulysses, ring=ring)
    assert (mesh.ulysses, mesh.ring) == (2, 3)


@pytest.mark.parametrize(("ulysses", "ring"), [(4, None), (2, 2), (6, 1), (0, None), (None, 4)])
def test_what_does_not_fit_is_refused_with_what_does(ulysses: int | None, ring: int | None) -> None:
    with pytest.raises(UserError, match=r"3 x 2, 2 x 3, 1 x 6$"):
        Mesh.choose(6, 5, ulysses=ulysses, ring=ring)


@pytest.mark.parametrize(("ulysses", "ring"), factor_pairs(12))
def test_groups_cover_every_rank_once(ulysses: int, ring: int) -> None:
    mesh = Mesh(ulysses=ulysses, ring=ring)
    for groups in (mesh.ulysses_groups(), mesh.ring_groups()):
        assert sorted(rank for group in groups for rank in group) == list(range(12))
    crossings = {
        (tuple(u), tuple(r)): len(set(u) & set(r))
        for u in mesh.ulysses_groups()
        for r in mesh.ring_groups()
    }
    assert set(crossings.values()) == {1}


@pytest.mark.parametrize(
    ("world", "size", "grid"),
    [(1, (8, 8), "1x1"), (8, (96, 56), "4x2"), (2, (16, 16), "2x1"), (3, (8, 20), "1x3"),
     (4, (12, 20), "2x2"), (7, (14, 14), "7x1")],
)  # fmt: skip
def test_grids(world: int, size: tuple[int, int], grid: str) -> None:
    chosen = Grid.choose(world, size)
    assert str(chosen) == grid
    assert [chosen.rank(*chosen.position(rank)) for rank in range(world)] == list(range(world))
    assert chosen.rank(-1, 0) is None and chosen.rank(0, chosen.columns) is None


def test_grids_that_do_not_fit_are_refused() -> None:
    assert Grid.choose(6, (8, 8), Grid.parse("1x6")) == Grid(rows=1, columns=6)
    with pytest.raises(UserError, match="grids that do: 2x1, 1x2"):
        Grid.choose(2, (8, 8), Grid.parse("2x2"))
    with pytest.raises(UserError, match=r"13 ranks: no grid .*: 10, 11, 12, 14, 15$"):
        Grid.choose(13, (12, 12))
    with pytest.raises(UserError, match=r"numbers that do: 3, 4, 6$"):
        Grid.choose(7, (2, 3))
    for text in ("3", "ax2", "0x2"):
        with pytest.raises(UserError, match="--vae-grid"):
            Grid.parse(text)
