"""Messages through shared memory: whole, in order, of any size; no wait for a rank that is gone."""

import os

import torch
import torch.distributed as dist

from livetalk_kernels.errors import CommError
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.shared_memory import CAPACITY, LARGEST, Mailboxes
from livetalk_kernels.testing.processes import run_ranks


def pattern(sender: int, index: int, size: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1000 * sender + index)
    return torch.randint(0, 256, (size,), generator=random, dtype=torch.uint8)


def storm(comm: Communicator) -> bool:
    """Many messages both ways, of sizes that wrap, fill the ring, or do not go into it at all."""
    sizes = [1, 7, LARGEST, 100_003, LARGEST + 1, 4, LARGEST, LARGEST, CAPACITY, 64, 700_001] * 3
    other = 1 - comm.rank
    got = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    pending = [
        comm.exchange([(other, pattern(comm.rank, i, size))], [(other, got[i])], kind="ring")
        for i, size in enumerate(sizes)
    ]
    for each in reversed(pending):  # the order of the waits does not matter
        each.wait()
    return all(x.equal(pattern(other, i, len(x))) for i, x in enumerate(got))


def test_every_byte_arrives_whatever_the_size() -> None:
    assert run_ranks(storm, 2) == [True, True]


def several(comm: Communicator) -> list[float]:
    """All to all among more ranks than this machine has cores, with a group split off."""
    part = comm.split([[0, 2], [1, 3, 4]])
    total = []
    for group in (comm, part, comm):
        got = torch.zeros(group.size, 1000)
        others = [peer for peer in range(group.size) if peer != group.rank]
        group.exchange(
            [(peer, torch.full((1000,), float(group.rank))) for peer in others],
            [(peer, got[peer]) for peer in others],
            kind="all_to_all",
        ).wait()
        total.append(got.mean(1).sum().item() + group.rank)
    return total


def test_groups_have_rings_of_their_own() -> None:
    for rank, totals in enumerate(run_ranks(several, 5)):
        assert totals == [10, 1 if rank in (0, 2) else 3, 10]


def has_mailboxes(comm: Communicator) -> bool:
    assert dist.group.WORLD is not None
    return Mailboxes.open(dist.group.WORLD) is not None


def test_ranks_of_this_machine_share_memory() -> None:
    """Only where other cores see stores in order; gloo alone serves other processors."""
    assert run_ranks(has_mailboxes, 2) == [os.uname().machine == "x86_64"] * 2


def lose(comm: Communicator) -> str:
    """Wait for a rank whose process has ended, simulated by a child."""
    assert dist.group.WORLD is not None
    mailboxes = Mailboxes.open(dist.group.WORLD)
    if mailboxes is None:  # another processor
        return f"rank {1 - comm.rank} of the group is gone"
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    mailboxes._pids[1 - comm.rank] = child
    try:
        mailboxes.exchange([], [(1 - comm.rank, torch.empty(10))]).wait()
    except CommError as error:
        return str(error)
    return "nothing was noticed"


def test_a_rank_that_is_gone_is_not_waited_for() -> None:
    for rank, message in enumerate(run_ranks(lose, 2, timeout=20)):
        assert f"rank {1 - rank} of the group is gone" in message
