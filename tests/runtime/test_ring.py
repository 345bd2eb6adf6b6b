"""Ring attention against the formula in float64: blocks of any length, in 32 and 16 bits."""

import pytest
import torch
from torch import Tensor

from livetalk_kernels.ops import Ops, bind_ops
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.ring import ring_attention
from livetalk_kernels.testing.processes import run_ranks

HEADS, WIDTH = 3, 16
# Rows of every rank, dtype, spread of the scores.
CASES: dict[int, list[tuple[list[int], torch.dtype, float]]] = {
    2: [
        ([9, 9], torch.float32, 1.0),
        ([40, 3], torch.float32, 6.0),
        ([5, 0], torch.float32, 1.0),
        ([0, 0], torch.float32, 1.0),
        ([64, 64], torch.bfloat16, 1.0),
    ],
    5: [
        ([3, 2, 2, 2, 2], torch.float32, 1.0),
        ([0, 7, 0, 1, 30], torch.float32, 6.0),
        ([64] * 5, torch.bfloat16, 1.0),
    ],
}


def draw(tokens: int, dtype: torch.dtype, spread: float) -> list[Tensor]:
    """q, k, v of all rows, [H, L, d] each."""
    random = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, HEADS, tokens, WIDTH, generator=random)
    return [x.to(dtype) for x in (q * spread, k, v)]


def truth(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[L, H, d] in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.mT * WIDTH**-0.5
    return (scores.softmax(-1) @ v).transpose(0, 1)


class Watched:
    """Ops that note what had been sent when an attention began."""

    def __init__(self, ops: Ops, comm: Communicator) -> None:
        """Wrap bound ops."""
        self._ops, self._comm = ops, comm
        self.sent: list[int] = []
        self.merged: set[torch.dtype] = set()

    def chunk_attention(self, *qkv: Tensor) -> tuple[Tensor, Tensor]:
        self.sent.append(self._comm.traffic.messages["ring"])
        return self._ops.chunk_attention(*qkv)

    def merge_lse(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        self.merged |= {part.dtype for part in parts}
        return self._ops.merge_lse(*parts)


def rotate(comm: Communicator, cases: list) -> list:
    results = []
    for rows, dtype, spread in cases:
        ops = Watched(bind_ops(device="cpu", dtype=dtype), comm)
        first = sum(rows[: comm.rank])
        q, k, v = (
            x[:, first : first + rows[comm.rank]].contiguous()
            for x in draw(sum(rows), dtype, spread)
        )
        comm.traffic.clear()
        out = ring_attention(comm, ops, q, k, v, rows)
        assert out.is_contiguous() and ops.merged == {torch.float32}
        results.append({"out": out[0], "sent": ops.sent, "bytes": comm.traffic.bytes["ring"]})
    return results


@pytest.mark.parametrize("world", [2, 5])
def test_blocks_of_any_length(world: int) -> None:
    ranks = run_ranks(rotate, world, CASES[world])
    for index, (rows, dtype, spread) in enumerate(CASES[world]):
        inputs = draw(sum(rows), dtype, spread)
        expected = truth(*inputs)
        out = torch.cat([results[index]["out"] for results in ranks])
        assert out.dtype == dtype and out.shape == expected.shape
        if not sum(rows):
            continue
        whole = bind_ops(device="cpu", dtype=dtype).chunk_attention(
            *(x.transpose(0, 1)[None] for x in inputs)
        )[0][0]
        error = (out.double() - expected).norm() / expected.norm()
        at_once = (whole.double() - expected).norm() / expected.norm()
        # Two roundings instead of one, of parts that are larger than their sum.
        assert error <= (2 * at_once + 1e-7 if dtype == torch.float32 else 1.6 * at_once), rows
        for rank, results in enumerate(ranks):
            passed = [rows[(rank - hop) % world] for hop in range(world - 1)]
            size = 2 * HEADS * WIDTH * dtype.itemsize
            assert results[index]["bytes"] == size * sum(passed)
            if min(rows):  # the next block is under way while one is attended to
                hops = [min(hop + 1, world - 1) for hop in range(world)]
                assert results[index]["sent"] == [2 * hop for hop in hops]
