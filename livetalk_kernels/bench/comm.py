"""Times communication between ranks: patterns of messages, checked first, interleaved.

Every rank calls the same functions; the slowest rank's time counts. A link's capacity is measured
in the same rounds, by large messages between neighbours.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..runtime.comm import Communicator
from .comm_patterns import Pattern
from .report import RED, TIMED
from .timer import MAX_ROUNDS, MIN_ROUNDS, Sampler, interleave

LINK_SIZES = {"cpu": (1 << 20, 4 << 20, 16 << 20), "cuda": (4 << 20, 64 << 20, 256 << 20)}
ALIGNMENT = 256  # bytes, of a message in its buffer, like tensors on a GPU
PERIOD = 251  # contents count modulo this prime, so that no power of two repeats them
POISON = 255  # a value that no message contains


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Summary of samples, in seconds, each of the slowest rank.

    Attributes:
        count: Number of samples.
        p50: Median.
        p95: One sample in twenty is slower.
        least: Fastest.
        most: Slowest.
    """

    count: int
    p50: float
    p95: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Latency":
        """Summarise at least one sample."""
        p50, p95 = (float(np.percentile(samples, p)) for p in (50, 95))
        least, most = min(samples), max(samples)
        return cls(count=len(samples), p50=p50, p95=p95, least=least, most=most)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One pattern's result.

    Attributes:
        pattern: Pattern of messages.
        state: ``timed``; or ``red``: not every byte arrived.
        note: What did not arrive.
        time: The samples; None if not timed.
    """

    pattern: Pattern
    state: str
    note: str = ""
    time: Latency | None = None

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second and rank, in the busiest direction; None if not timed."""
        return None if self.time is None else self.pattern.bytes / self.time.p50


@dataclass(frozen=True, kw_only=True)
class Link:
    """What neighbours can send each other while all other pairs do so too.

    Attributes:
        one_way: The fastest one-way row; None if none was timed.
        both_ways: The fastest two-way row; its bandwidth is that of one direction.
        nominal: Bytes per second of all of a GPU's NVLinks, one way, as NVML reports; else None.
    """

    one_way: Row | None
    both_ways: Row | None
    nominal: float | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], nominal: float | None = None) -> "Link":
        """Select the best of the rows of `link_patterns`."""

        def best(both_ways: bool) -> Row | None:
            chosen = [row for row in rows if row.time and row.pattern.two_way == both_ways]
            return max(chosen, key=lambda row: row.bandwidth or 0.0, default=None)

        return cls(one_way=best(False), both_ways=best(True), nominal=nominal)

    def share(self, row: Row) -> float | None:
        """Compute a row's bandwidth as a fraction of this link's in as many directions."""
        link = self.both_ways if row.pattern.two_way else self.one_way
        if row.bandwidth is None or link is None or link.bandwidth is None:
            return None
        return row.bandwidth / link.bandwidth

    def row_as_json(self, row: Row) -> dict[str, Any]:
        """Convert a row to plain values; times in seconds."""
        pattern = row.pattern
        return {
            "pattern": pattern.name,
            "kind": pattern.kind,
            "messages": len(pattern.messages),
            "bytes": pattern.bytes,
            "total_bytes": sum(message.bytes for message in pattern.messages),
            "both_ways": pattern.two_way,
            "state": row.state,
            "note": row.note,
            "time": None if row.time is None else dataclasses.asdict(row.time),
            "gb_per_s": None if row.bandwidth is None else row.bandwidth / 1e9,
            "of_link": self.share(row),
        }

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values; bandwidths in GB/s per direction."""
        entry: dict[str, Any] = {}
        for name, row in (("one_way", self.one_way), ("both_ways", self.both_ways)):
            entry[name] = None
            if row is not None and row.bandwidth is not None:
                entry[name] = {
                    "gb_per_s": row.bandwidth / 1e9,
                    "message_bytes": row.pattern.messages[0].bytes,
                }
        entry["nvlink_nominal_gb_per_s"] = None if self.nominal is None else self.nominal / 1e9
        return entry


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rank's part in a pattern.

    Attributes:
        run: Sends and receives; subsequent work on this device waits for it.
        sent: (number of the message, tensor).
        received: The same.
    """

    run: Callable[[], object]
    sent: list[tuple[int, Tensor]]
    received: list[tuple[int, Tensor]]


def take_part(comm: Communicator, pattern: Pattern, send: Tensor, receive: Tensor) -> Part:
    """Set up a rank's part in a pattern; its messages are contiguous in two buffers."""
    if pattern.kind == "broadcast":
        source, _, size = pattern.messages[0]
        tensor = (send if comm.rank == source else receive)[:size]
        return Part(
            run=lambda: comm.broadcast(tensor, source, kind=pattern.kind),
            sent=[(0, tensor)] if comm.rank == source else [],
            received=[] if comm.rank == source else [(0, tensor)],
        )
    messages = list(enumerate(pattern.messages))
    own = [(number, m.target, m.bytes) for number, m in messages if m.source == comm.rank]
    others = [(number, m.source, m.bytes) for number, m in messages if m.target == comm.rank]
    sent, to = _views(send, own)
    received, source_of = _views(receive, others)
    return Part(
        run=lambda: comm.exchange(to, source_of, kind=pattern.kind).wait(),
        sent=sent,
        received=received,
    )


def check(comm: Communicator, part: Part, device: torch.device) -> str:
    """Exchange contents that differ between messages.

    Returns:
        Empty if every byte arrived on every rank, else what is wrong.
    """
    for number, tensor in part.sent:
        tensor.copy_(_contents(number, tensor))
    for _, tensor in part.received:
        tensor.fill_(POISON)
    part.run()
    wrong = sum(not tensor.equal(_contents(number, tensor)) for number, tensor in part.received)
    counts = torch.tensor([wrong, len(part.received)], device=device)
    comm.all_reduce(counts, "sum")
    wrong, total = counts.tolist()
    return f"{wrong} of {total} messages arrived other than they were sent" if wrong else ""


def bench_patterns(
    comm: Communicator,
    patterns: Sequence[Pattern],
    device: torch.device,
    *,
    rounds: int | None = None,
    seconds: float = 3.0,
    report: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Check all patterns, then time them interleaved. Every rank must pass the same arguments.

    Args:
        comm: All ranks.
        patterns: Messages to send.
        device: Device of this rank's tensors.
        rounds: Number of rounds; None to decide by time.
        seconds: Time for the rounds.
        report: Called with progress messages.

    Returns:
        One row per pattern, the same on every rank.
    """
    report("checking")
    send, receive = (
        torch.zeros(
            max(_room(pattern, side, comm.rank) for pattern in patterns),
            dtype=torch.uint8,
            device=device,
        )
        for side in ("source", "target")
    )
    parts = [take_part(comm, pattern, send, receive) for pattern in patterns]
    comm.barrier()  # NCCL requires all ranks in its first call
    notes = [check(comm, part, device) for part in parts]
    samplers = {
        str(index): _sampler(comm, part, device)
        for index, (part, note) in enumerate(zip(parts, notes, strict=True))
        if not note
    }
    times: dict[str, Latency] = {}
    if samplers:
        if rounds is None:
            rounds = _rounds(comm, samplers, seconds, device)
        report(f"timing, {rounds} rounds")
        own = interleave(samplers, rounds=rounds)
        slowest = torch.tensor(list(own.values()), dtype=torch.float64, device=device)
        comm.all_reduce(slowest, "max")
        times = {name: Latency.of(row) for name, row in zip(own, slowest.tolist(), strict=True)}
    return [
        Row(pattern=pattern, state=RED if note else TIMED, note=note, time=times.get(str(index)))
        for index, (pattern, note) in enumerate(zip(patterns, notes, strict=True))
    ]


def nvlink_bandwidth(device: torch.device) -> float | None:
    """Return the nominal bytes per second of all of a GPU's active NVLinks, one way.

    Returns:
        What NVML reports; None on a CPU, without NVLink or if NVML does not report it.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml  # slow to import, and only reports need it
    except ImportError:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        fields = [pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT, pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON]
        values = pynvml.nvmlDeviceGetFieldValues(handle, fields)
        if any(value.nvmlReturn != pynvml.NVML_SUCCESS for value in values):
            return None
        count, megabytes = (value.value.uiVal for value in values)
        states = [pynvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(count)]
        return sum(map(bool, states)) * megabytes * 1e6 or None
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _sampler(comm: Communicator, part: Part, device: torch.device) -> Sampler:
    """Build a sampler: this rank's seconds, from when all are ready."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def sample_gpu() -> float:
            comm.barrier()
            part.run()  # keeps the GPU busy while the timed call is being launched
            stream = torch.cuda.current_stream(device)
            begin.record(stream)
            part.run()
            end.record(stream)
            end.synchronize()
            return begin.elapsed_time(end) / 1e3

        return sample_gpu

    def sample_cpu() -> float:
        comm.barrier()
        start = time.perf_counter()
        part.run()
        return time.perf_counter() - start

    return sample_cpu


def _rounds(
    comm: Communicator, samplers: dict[str, Sampler], seconds: float, device: torch.device
) -> int:
    """Return how many rounds fit into the time; all ranks agree."""
    for sampler in samplers.values():  # the first call opens connections
        sampler()
    begin = time.perf_counter()
    for sampler in samplers.values():
        sampler()
    one = torch.tensor([time.perf_counter() - begin], dtype=torch.float64, device=device)
    slowest = comm.all_reduce(one, "max").item()
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / max(slowest, 1e-6))))


def _contents(number: int, like: Tensor) -> Tensor:
    """Return the bytes of a message: they count up, each from another start."""
    start = number * 7 % PERIOD
    period = torch.arange(PERIOD, dtype=torch.uint8, device=like.device)
    return period.repeat((start + like.numel()) // PERIOD + 1)[start : start + like.numel()]


def _views(
    buffer: Tensor, messages: Sequence[tuple[int, int, int]]
) -> tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]]:
    """Convert (number, peer, bytes) of messages to (number, tensor) and (peer, tensor)."""
    numbered, addressed, start = [], [], 0
    for number, peer, size in messages:
        tensor = buffer[start : start + size]
        numbered.append((number, tensor))
        addressed.append((peer, tensor))
        start += _aligned(size)
    return numbered, addressed


def _room(pattern: Pattern, side: str, rank: int) -> int:
    """Compute the bytes that a rank's messages take in a buffer."""
    return sum(_aligned(m.bytes) for m in pattern.messages if getattr(m, side) == rank)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
