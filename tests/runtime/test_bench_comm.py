"""What the comm benchmark sends: the right volumes; what does not arrive is red."""

import dataclasses

import pytest
import torch
from torch import Tensor

from livetalk_kernels.bench.comm import (
    Latency,
    Link,
    Row,
    bench_patterns,
    check,
    nvlink_bandwidth,
    take_part,
)
from livetalk_kernels.bench.comm_patterns import Pattern, link_patterns
from livetalk_kernels.runtime.comm import Communicator, Pending
from livetalk_kernels.runtime.mesh import Grid, Mesh, shares
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.config import get_preset
from livetalk_model.dry_run.patterns import Level, Sizes, model_patterns

CPU = torch.device("cpu")
# Nothing divides: 45 tokens, 5 heads, 7 x 5 latents.
LEVELS = (Level(1, 32, 1), Level(2, 32, 2), Level(4, 16, 4), Level(8, 8, 4))
ODD = Sizes(
    tokens=45, heads=5, head_dim=8, outputs=64, windows=1000, latent=(7, 5), levels=LEVELS,
    middle=64, dtype=torch.float32,
)  # fmt: skip
PUBLISHED = Sizes.of(get_preset("14b"), (768, 448), torch.bfloat16)


def patterns_of(world: int, ulysses: int, grid: str) -> list[Pattern]:
    mesh = Mesh(ulysses=ulysses, ring=world // ulysses)
    return link_patterns(world, [1 << 20]) + model_patterns(ODD, mesh, Grid.parse(grid))


def by_name(patterns: list[Pattern]) -> dict[str, Pattern]:
    named = {pattern.name: pattern for pattern in patterns}
    assert len(named) == len(patterns)
    assert max(map(len, named)) <= 31
    return named


def test_sizes_of_the_published_model() -> None:
    assert Sizes(
        tokens=12096, heads=40, head_dim=128, outputs=64, windows=33 * 5 * 12 * 768,
        latent=(96, 56), middle=2 * 384, dtype=torch.bfloat16,
        levels=((1, 384, 1), (2, 384, 2), (4, 192, 4), (8, 96, 4)),
    ) == PUBLISHED  # fmt: skip


def test_messages_of_the_published_model_on_eight_ranks() -> None:
    found = by_name(model_patterns(PUBLISHED, Mesh(ulysses=4, ring=2), Grid(rows=4, columns=2)))
    rows, head = 1512, 128 * 2  # tokens of a rank; bytes of one in one head
    to_heads, back = found["q, k, v to heads, all heads"], found["results back, all heads"]
    assert to_heads.bytes == 3 * 3 * 10 * rows * head  # three tensors, three peers, ten heads each
    assert len(to_heads.messages) == 8 * 3 * 3
    assert back.bytes == 3 * 10 * rows * head
    assert found["q, k, v to heads, one head each"].bytes == to_heads.bytes // 10
    assert found["results back, one head each"].bytes == back.bytes // 10
    assert found["keys and values round the ring"].bytes == 2 * 10 * 4 * rows * head
    assert found["gather, end of a step"].bytes == 7 * rows * 64 * 4
    assert found["gather, middle of the VAE"].bytes == 7 * 24 * 28 * 2 * 384 * 2
    assert found["audio windows to all"].bytes == 33 * 5 * 12 * 768 * 4
    assert found["uint8 frames to rank 0"].bytes == 7 * 4 * 192 * 224 * 3
    # The busiest slice has one neighbour at its side, one above, one below, and two at corners.
    pixel = 96 * 4 * 2
    assert found["halo 768x448x96"].bytes == (2 * 224 + 192 + 2) * pixel
    assert found["halo 768x448x96, rows"].bytes == 2 * 224 * pixel
    assert found["halo 768x448x96, columns"].bytes == 192 * pixel
    assert found["halo 96x56x384, corners"].bytes == 2 * 384 * 2
    assert {"halo 192x112x384", "halo 384x224x192"} <= found.keys()
    assert all(message.source != message.target for p in found.values() for message in p.messages)
    assert not found["uint8 frames to rank 0"].two_way and to_heads.two_way


@pytest.mark.parametrize(("world", "ulysses"), [(2, 2), (3, 1), (5, 5), (6, 3), (6, 2)])
def test_every_token_reaches_every_head_once(world: int, ulysses: int) -> None:
    mesh = Mesh(ulysses=ulysses, ring=world // ulysses)
    found = by_name(model_patterns(ODD, mesh, Grid(rows=world, columns=1)))
    row, heads, tokens = ODD.head_dim * ODD.dtype.itemsize, shares(5, ulysses), shares(45, world)
    rank_heads = [heads[rank % ulysses] for rank in range(world)]
    stays = sum(n * own for n, own in zip(tokens, rank_heads, strict=True)) * row
    whole = 45 * 5 * row
    if ulysses > 1:
        for name, tensors in (("q, k, v to heads", 3), ("results back", 1)):
            pattern = next(
                p for key, p in found.items() if key.startswith(name) and "one" not in key
            )
            assert sum(pattern.sent.values()) == tensors * (whole - stays)
    if mesh.ring > 1:
        around = found["keys and values round the ring"]
        assert sum(around.sent.values()) == 2 * whole  # each block and head moves on by one
        assert {m.target - m.source for m in around.messages} <= {ulysses, ulysses - world}
    assert ("keys and values round the ring" in found) == (mesh.ring > 1)


def test_one_head_a_rank_is_said_once() -> None:
    names = by_name(model_patterns(ODD, Mesh(ulysses=5, ring=1), Grid(rows=5, columns=1)))
    assert [name for name in names if "head" in name] == [
        "q, k, v to heads, all heads",
        "results back, all heads",
    ]


def test_a_link_is_measured_between_pairs() -> None:
    one_way, both_ways = link_patterns(5, [4 << 20])
    assert [(m.source, m.target) for m in one_way.messages] == [(0, 1), (2, 3)]
    assert not one_way.two_way and both_ways.two_way
    assert one_way.bytes == both_ways.bytes == 4 << 20


def measure(comm: Communicator, ulysses: int, grid: str) -> list:
    """Names, states, traffic and times as this rank has them."""
    rows = []
    patterns = patterns_of(comm.size, ulysses, grid)
    for row in bench_patterns(comm, patterns, CPU, rounds=2):
        assert row.time is not None
        rows.append([row.pattern.name, row.state, row.time.count, row.time.p50, row.time.p95])
    comm.traffic.clear()
    volumes = []
    for pattern in patterns:
        send, receive = (torch.zeros(1 << 21, dtype=torch.uint8) for _ in range(2))
        before = comm.traffic.bytes[pattern.kind]
        take_part(comm, pattern, send, receive).run()
        volumes.append([comm.traffic.bytes[pattern.kind] - before, pattern.sent[comm.rank]])
    return [rows, volumes]


@pytest.mark.parametrize(
    ("world", "ulysses", "grid"), [(2, 2, "2x1"), (3, 1, "1x3"), (3, 3, "3x1"), (4, 2, "2x2")]
)
def test_all_ranks_get_the_same_times(world: int, ulysses: int, grid: str) -> None:
    results = run_ranks(measure, world, ulysses, grid)
    rows = results[0][0]
    assert [row[0] for row in rows] == [p.name for p in patterns_of(world, ulysses, grid)]
    assert all(row[1:3] == ["timed", 2] and 0 < row[3] <= row[4] for row in rows)
    for other, volumes in results:
        assert other == rows
        assert all(sent == planned for sent, planned in volumes)


class Corrupted(Communicator):
    """Changes one byte of what arrives on rank 1."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner.rank, inner.size, inner.traffic)
        self._inner = inner

    def exchange(self, send, receive, *, kind: str) -> Pending:
        receive = list(receive)
        self._inner.exchange(send, receive, kind=kind).wait()
        if self.rank == 1 and kind == "gather":
            receive[-1][1][-1] += 1
        return Pending()

    def all_reduce(self, x: Tensor, reduction, *, kind: str = "reduce") -> Tensor:
        return self._inner.all_reduce(x, reduction, kind=kind)

    def broadcast(self, x: Tensor, source: int, *, kind: str = "broadcast") -> Tensor:
        self._inner.broadcast(x, source, kind=kind)
        return x if source == self.rank else x.zero_()

    def split(self, groups) -> Communicator:
        raise NotImplementedError

    def barrier(self) -> None:
        self._inner.barrier()


def measure_corrupted(comm: Communicator) -> list:
    rows = bench_patterns(Corrupted(comm), patterns_of(comm.size, 2, "2x1"), CPU, rounds=2)
    return [[row.pattern.name, row.state, row.note, row.time is None] for row in rows]


def test_what_does_not_arrive_is_red_and_not_timed() -> None:
    results = run_ranks(measure_corrupted, 2)
    assert results[0] == results[1]
    red = {name: note for name, state, note, untimed in results[0] if state == "red" and untimed}
    assert red == dict.fromkeys(
        ["gather, end of a step", "gather, middle of the VAE"],
        "1 of 2 messages arrived other than they were sent",
    ) | {"audio windows to all": "1 of 1 messages arrived other than they were sent"}
    assert sum(state == "timed" for _, state, *_ in results[0]) == len(results[0]) - 3


def swapped_and_lost(comm: Communicator) -> list:
    """Two messages of one pair, received in the other order; then all, lost after a good run."""
    pattern = by_name(patterns_of(2, 2, "2x1"))["q, k, v to heads, one head each"]
    part = take_part(comm, pattern, *(torch.zeros(1 << 16, dtype=torch.uint8) for _ in range(2)))
    found = [check(comm, part, CPU)]
    found.append(check(comm, dataclasses.replace(part, run=lambda: None), CPU))
    part.received[:2] = [
        (part.received[0][0], part.received[1][1]),
        (part.received[1][0], part.received[0][1]),
    ]
    return [*found, check(comm, part, CPU)]


def test_what_is_lost_or_swapped_is_noticed() -> None:
    good, lost, swapped = run_ranks(swapped_and_lost, 2)[0]
    assert not good
    assert lost.startswith("6 of 6 messages") and swapped.startswith("4 of 6 messages")


def test_rounds_by_time_are_those_of_all_ranks() -> None:
    for counts in run_ranks(count_rounds, 3):
        assert len(counts) == 1 and counts[0] >= 5


def count_rounds(comm: Communicator) -> list:
    rows = bench_patterns(comm, link_patterns(comm.size, [1 << 12]), CPU, seconds=0.05)
    return sorted({row.time.count for row in rows if row.time})


def row_of(name: str, size: int, seconds: float, *, both: bool) -> Row:
    one, two = link_patterns(2, [size])
    time = Latency.of([seconds])
    return Row(pattern=Pattern(name=name, kind="link", messages=(two if both else one).messages),
               state="timed", time=time)  # fmt: skip


def test_a_share_is_of_the_best_link_in_as_many_directions() -> None:
    rows = [
        row_of("small", 1 << 20, 1.0, both=False),
        row_of("large", 8 << 20, 4.0, both=False),
        row_of("back and forth", 8 << 20, 8.0, both=True),
    ]
    link = Link.of(rows, 2e9)
    assert link.one_way is rows[1] and link.both_ways is rows[2]
    assert link.share(rows[0]) == 0.5
    assert link.share(row_of("x", 4 << 20, 8.0, both=True)) == 0.5
    assert link.as_json()["nvlink_nominal_gb_per_s"] == 2
    red = Row(pattern=rows[0].pattern, state="red", note="no")
    assert Link.of([red]).share(rows[0]) is None and link.share(red) is None
    entry = Link.of([red]).row_as_json(red)
    assert entry["time"] is None and entry["gb_per_s"] is None and entry["note"] == "no"
    assert nvlink_bandwidth(CPU) is None


def test_latencies() -> None:
    latency = Latency.of([float(n) for n in range(1, 102)])
    assert (latency.count, latency.p50, latency.p95) == (101, 51, 96)
    assert (latency.least, latency.most) == (1, 101)
