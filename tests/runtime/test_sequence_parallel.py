"""A sequence shared out over a mesh: attention, first rows, extremes, gather, and their traffic."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from closed_form import step_bytes
from torch import Tensor

from livetalk_kernels.ops import Ops, bind_ops
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.mesh import Mesh, factor_pairs
from livetalk_kernels.runtime.sequence_parallel import LocalSequence, SequenceParallel
from livetalk_kernels.testing.processes import run_ranks

WIDTH = 16
# ulysses, ring, groups, fp8; tokens, heads, first rows.
CASES: dict[int, list[tuple[int, int, int | None, bool, int, int, int]]] = {
    1: [(1, 1, None, False, 11, 3, 4)],
    2: [
        (2, 1, None, False, 7, 3, 5),
        (1, 2, None, False, 7, 3, 3),
        (2, 1, 2, True, 64, 4, 0),
        (2, 1, None, False, 1, 2, 1),  # no token for the last rank
    ],
    4: [
        (4, 1, 2, False, 37, 9, 20),
        (2, 2, 3, False, 37, 7, 37),
        (2, 2, None, True, 50, 5, 0),
        (1, 4, None, False, 3, 2, 2),
    ],
}


def bound() -> Ops:
    return bind_ops(device="cpu", dtype=torch.float32)


def draw(tokens: int, heads: int) -> tuple[Tensor, ...]:
    """q, k [1, L, H, d]; v as a slice of a wider tensor; a map [3, L]."""
    random = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(1, tokens, 3, heads, WIDTH, generator=random).unbind(2)
    return q.contiguous(), k.contiguous(), v, torch.randn(3, tokens, generator=random)


def use(comm: Communicator, cases: list) -> list:
    results = []
    for ulysses, ring, groups, fp8, tokens, heads, first in cases:
        mesh = Mesh(ulysses=ulysses, ring=ring)
        parallel = SequenceParallel(mesh, comm, bound(), groups=groups, fp8=fp8)
        sequence = parallel.sequence(tokens)
        q, k, v, lines = (x[:, sequence.rows] for x in draw(tokens, heads))
        if sequence.layout == "head":
            q, k = (x.permute(2, 0, 1, 3).contiguous() for x in (q, k))
        comm.traffic.clear()
        attended = sequence.attention(q, k, v)
        first_rows = sequence.first_rows(k, first) if first else torch.empty(0)
        low, high = sequence.extremes(lines) if first else (torch.empty(0), torch.empty(0))
        results.append(
            {
                "rows": [sequence.rows.start, sequence.rows.stop],
                "by_token": sequence.by_token(q).contiguous(),
                "attention": attended,
                "first_rows": first_rows,
                "extremes": torch.stack((low, high)),
                "gather": sequence.gather(attended.flatten(2)),
                "bytes": dict(comm.traffic.bytes),
                "approximate": parallel.approximate,
            }
        )
    return results


@pytest.mark.parametrize("world", list(CASES))
def test_what_one_rank_has(world: int) -> None:
    ranks = run_ranks(use, world, CASES[world])
    for index, (ulysses, ring, _, fp8, tokens, heads, first) in enumerate(CASES[world]):
        q, k, v, lines = draw(tokens, heads)
        expected = bound().chunk_attention(q, k, v)[0]
        results = [results[index] for results in ranks]
        assert torch.cat([result["by_token"] for result in results]).equal(q[0])
        out = torch.cat([result["attention"] for result in results], dim=1)
        error = float((out - expected).norm() / expected.norm())
        if fp8:
            assert 1e-3 < error < 0.06  # e4m3 rounds to 3 bits: each of q, k, v by 2.6 % at rms
        else:
            assert error < 1e-6
        for rank, result in enumerate(results):
            assert result["approximate"] == fp8
            assert result["gather"].equal(out.flatten(2))
            if first:
                assert result["first_rows"].equal(k[0, :first])
                assert result["extremes"].equal(torch.stack((lines.amin(1), lines.amax(1))))
            assert result["bytes"] == step_bytes(
                Mesh(ulysses=ulysses, ring=ring),
                rank,
                tokens=tokens,
                heads=heads,
                head_dim=WIDTH,
                itemsize=4,
                layers=1,
                outputs=heads * WIDTH,
                first_rows=first,
                regions=3 if first else 0,
                fp8=fp8,
            )
        ends = [result["rows"] for result in results]
        assert ends[0][0] == 0 and ends[-1][1] == tokens
        assert all(a[1] == b[0] for a, b in pairwise(ends))


def test_one_rank_copies_nothing() -> None:
    parallel = SequenceParallel.alone(bound())
    sequence = parallel.sequence(5)
    assert type(sequence) is LocalSequence and sequence.layout == "token"
    q, k, v, _ = draw(5, 2)
    assert sequence.gather(q) is q
    assert sequence.by_token(q).data_ptr() == q.data_ptr()
    assert sequence.first_rows(k, 2).data_ptr() == k.data_ptr()
    assert sequence.attention(q, k, v).equal(parallel.ops.chunk_attention(q, k, v)[0])
    assert not parallel.approximate and not parallel.communicator.traffic.bytes


def test_the_published_model_on_eight() -> None:
    """The table of the README: 14 B at 768x448 in bf16."""
    sizes = {"tokens": 12096, "heads": 40, "head_dim": 128, "itemsize": 2, "layers": 40}
    found = {}
    for ulysses, ring in factor_pairs(8):
        mesh = Mesh(ulysses=ulysses, ring=ring)
        sent = [step_bytes(mesh, rank, **sizes, outputs=64) for rank in range(8)]
        assert all(one == sent[0] for one in sent)  # all divides
        found[ulysses, ring] = {kind: round(count / 1e6, 1) for kind, count in sent[0].items()}
    assert found == {
        (8, 1): {"all_to_all": 2167.6, "gather": 2.7},
        (4, 2): {"all_to_all": 1857.9, "ring": 1238.6, "gather": 2.7},
        (2, 4): {"all_to_all": 1238.6, "ring": 3715.9, "gather": 2.7},
        (1, 8): {"ring": 8670.4, "gather": 2.7},
    }
    fp8 = step_bytes(Mesh(ulysses=8, ring=1), 0, **sizes, outputs=64, fp8=True)
    assert round(fp8["all_to_all"] / 1e6, 1) == 1380.2


@pytest.mark.parametrize("world", [2, 6])
@pytest.mark.parametrize("tokens", [6, 13])
def test_all_that_is_sent(world: int, tokens: int) -> None:
    """Over all ranks: q, k, v and the result cross once, less what stays; K and V meet all."""
    heads, row = 7, WIDTH * 4
    for ulysses, ring in factor_pairs(world):
        total: Counter[str] = Counter()
        for rank in range(world):
            total.update(
                step_bytes(
                    Mesh(ulysses=ulysses, ring=ring), rank, tokens=tokens, heads=heads,
                    head_dim=WIDTH, itemsize=4, layers=2, outputs=5,
                )
            )  # fmt: skip
        assert total["ring"] == 2 * (ring - 1) * 2 * tokens * heads * row
        assert total["gather"] == (world - 1) * tokens * 5 * 4
        if (tokens * heads) % ulysses == 0 and heads % ulysses == 0:
            assert total["all_to_all"] == 2 * 4 * tokens * heads * row * (ulysses - 1) // ulysses
