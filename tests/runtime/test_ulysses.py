"""The all-to-all around attention: every rank gets all rows of its heads, and its own rows back."""

import pytest
import torch
from torch import Tensor

from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.ulysses import Ulysses
from livetalk_kernels.testing.processes import run_ranks

WIDTH = 6
# Rows of every rank, heads, groups, dtype.
CASES: dict[int, list[tuple[list[int], int, int, torch.dtype]]] = {
    2: [
        ([5, 5], 4, 1, torch.float32),
        ([5, 5], 4, 2, torch.float32),
        ([4, 1], 5, 2, torch.bfloat16),
        ([3, 0], 2, 1, torch.float32),
        ([4, 3], 7, 9, torch.float32),  # no more groups than heads of a rank
    ],
    3: [
        ([4, 4, 3], 3, 1, torch.float32),
        ([4, 4, 3], 7, 2, torch.float32),
        ([1, 1, 0], 8, 3, torch.bfloat16),
        ([7, 2, 5], 10, 1, torch.float8_e4m3fn),
    ],
}


def whole(heads: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v of all heads and rows, every element unlike the others, and one of another width."""
    numbers = torch.randperm(3 * heads * tokens * WIDTH, generator=torch.Generator().manual_seed(1))
    q, k, v = numbers.float().to(dtype).view(3, heads, tokens, WIDTH)
    return [q, k, v, torch.arange(heads * tokens).view(heads, tokens, 1).float()]


def exchange(comm: Communicator, cases: list) -> list:
    results = []
    for rows, heads, groups, dtype in cases:
        tensors = whole(heads, sum(rows), dtype)
        first = sum(rows[: comm.rank])
        own = [x[:, first : first + rows[comm.rank]].contiguous() for x in tensors]
        ulysses = Ulysses(comm, rows, heads, groups=groups)
        comm.traffic.clear()
        started = []

        def attend(*arrived: Tensor, ulysses=ulysses, tensors=tensors, started=started) -> Tensor:
            mine = ulysses.groups[len(started)][comm.rank]
            for x, expected in zip(arrived, tensors, strict=True):
                assert x.is_contiguous() and torch.equal(x.float(), expected[mine].float())
            started.append(comm.traffic.messages["all_to_all"])
            return arrived[0].transpose(0, 1).contiguous()[None]

        out = ulysses.attention(own, attend)
        assert out.is_contiguous()
        expected = tensors[0][:, first : first + rows[comm.rank]].transpose(0, 1)[None]
        assert torch.equal(out.float(), expected.float())
        assert out.untyped_storage().data_ptr() != own[0].untyped_storage().data_ptr()
        results.append({"groups": len(ulysses.groups), "started": started})
    return results


@pytest.mark.parametrize("world", [2, 3])
def test_rows_become_heads_and_return(world: int) -> None:
    for results in run_ranks(exchange, world, CASES[world]):
        for (rows, heads, groups, _), result in zip(CASES[world], results, strict=True):
            assert result["groups"] == min(groups, heads // world)
            # While a group is attended to, the next has been sent: four tensors to each peer.
            if min(rows):
                scatter = 4 * (world - 1)
                count = result["groups"]
                sent = [min(n + 2, count) * scatter + n * (world - 1) for n in range(count)]
                assert result["started"] == sent
