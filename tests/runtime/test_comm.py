"""The communicator: messages arrive, in order, and are counted."""

import pytest
import torch

from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_kernels.testing.processes import run_ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int64)


def neighbours(comm: Communicator) -> dict:
    """Two messages of every dtype to the next rank; an empty one is skipped."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    got = {}
    for dtype in DTYPES:
        send = [(after, torch.full((3, 2), comm.rank + i).to(dtype)) for i in range(2)]
        receive = [(before, torch.empty(3, 2, dtype=dtype)) for _ in range(2)]
        send.append((after, torch.empty(0)))
        receive.append((before, torch.empty(0)))
        pending = comm.exchange(send, receive, kind="ring")
        pending.wait()
        pending.wait()
        got[str(dtype)] = [tensor.float().mean().item() for _, tensor in receive[:2]]
    return {"got": got, "bytes": dict(comm.traffic.bytes), "count": dict(comm.traffic.messages)}


@pytest.mark.parametrize("world", [2, 3])
def test_messages_arrive_in_order_and_are_counted(world: int) -> None:
    for rank, result in enumerate(run_ranks(neighbours, world)):
        before = (rank - 1) % world
        assert set(map(tuple, result["got"].values())) == {(before, before + 1)}
        assert result["bytes"] == {"ring": 2 * 6 * sum(dtype.itemsize for dtype in DTYPES)}
        assert result["count"] == {"ring": 2 * len(DTYPES)}


def collectives(comm: Communicator) -> dict:
    sizes = [3, 0, 2][: comm.size]
    rows = torch.full((sizes[comm.rank], 2), float(comm.rank))
    groups = [[0, 2], [1]] if comm.size == 3 else [[1, 0]]
    part = comm.split(groups)
    x = torch.tensor([float(comm.rank + 1)])
    return {
        "gather": comm.all_gather(rows, sizes),
        "sum": comm.all_reduce(x.clone(), "sum"),
        "min": comm.all_reduce(x.clone(), "min"),
        "max": comm.all_reduce(x.clone(), "max"),
        "broadcast": comm.broadcast(x.clone(), 1),
        "part": [part.rank, part.size],
        "part sum": part.all_reduce(x.clone(), "sum"),
        "bytes": dict(comm.traffic.bytes),
    }


def test_collectives() -> None:
    results = run_ranks(collectives, 3)
    for rank, result in enumerate(results):
        assert result["gather"].tolist() == [[0.0, 0.0]] * 3 + [[2.0, 2.0]] * 2
        assert [result[name].item() for name in ("sum", "min", "max")] == [6, 1, 3]
        assert result["broadcast"].item() == 2
        assert result["part"] == [[0, 2], [0, 1], [1, 2]][rank]
        assert result["part sum"].item() == [4, 2, 4][rank]
    assert results[0]["bytes"]["gather"] == 2 * 3 * 2 * 4  # two peers, three rows of two floats


def test_alone_nothing_is_sent() -> None:
    comm = LocalCommunicator()
    x = torch.ones(2)
    comm.exchange([], [], kind="halo").wait()
    comm.barrier()
    assert comm.all_gather(x, [2]).equal(x)
    assert comm.all_reduce(x, "max") is x
    assert comm.broadcast(x, 0) is x
    assert comm.split([[0]]) is comm
    assert not comm.traffic.bytes


def fail(comm: Communicator) -> None:
    if comm.rank == 1:
        raise ValueError("this one")
    comm.barrier()


def test_the_harness_shows_the_error_of_a_rank() -> None:
    with pytest.raises(RuntimeError, match="this one"):
        run_ranks(fail, 2)
