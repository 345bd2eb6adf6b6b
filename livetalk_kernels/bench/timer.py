"""Times calls that alternate: rounds of samples, on a CPU or a GPU.

A shared machine drifts by 5 to 20 % within minutes. So everything compared is interleaved, one
sample each per round, and compared round by round.

Cold means that a call finds its inputs in memory, not in a cache, as in a model whose layers exceed
the cache. On a CPU calls alternate between several copies of the inputs, together larger than the
last-level cache; if that would need too many copies, a buffer of that size is written before each
call. That takes longer than a small call, so a sample then has fewer calls: the time budget
includes all overheads. On a GPU, see `cuda_timer`, a buffer twice as large as L2 is written and
read before each call. A call allocates its outputs, as in the model, and frees them within the
measured time.
"""

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..heap import CALLS_UNTIL_KEPT
from ..machine import last_level_cache
from ..spec import Arguments

Run = Callable[..., Any]
Sampler = Callable[[], float]
"""Takes one sample: the seconds of a call."""

MIN_ROUNDS, MAX_ROUNDS = 5, 1000
MAX_COPIES = 16
COLD_CACHES = 2  # size of the input copies, or of a buffer, in last-level caches
WARM_CALLS, WARM_SECONDS = CALLS_UNTIL_KEPT, {"cpu": 0.05, "cuda": 0.2}
SLOW_SECONDS = 2.0  # limit on a CPU's warm-up
SAMPLE_SECONDS = 0.005  # a sample is the median of as many calls as fit
MAX_CALLS = 50


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of samples, in seconds.

    Attributes:
        count: Number of samples.
        p20: A fifth of the samples is faster.
        p50: Median.
        p80: A fifth of the samples is slower.
        least: Fastest.
        most: Slowest.
    """

    count: int
    p20: float
    p50: float
    p80: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Summary":
        """Summarise at least one sample."""
        p20, p50, p80 = (float(np.percentile(samples, p)) for p in (20, 50, 80))
        least, most = min(samples), max(samples)
        return cls(count=len(samples), p20=p20, p50=p50, p80=p80, least=least, most=most)

    @property
    def spread(self) -> float:
        """Distance between p20 and p80, relative to the median."""
        return (self.p80 - self.p20) / self.p50


def ratio(base: Sequence[float], own: Sequence[float]) -> float:
    """Compute how many times faster ``own`` is than ``base``: the median of the rounds' ratios."""
    return float(np.median(np.asarray(base) / np.asarray(own)))


def interleave(
    samplers: Mapping[str, Sampler],
    *,
    rounds: int | None = None,
    seconds: float = 1.0,
    least: int = MIN_ROUNDS,
) -> dict[str, list[float]]:
    """Interleave samplers, rotating which one starts a round; an extra first round is discarded.

    Args:
        samplers: Name -> function that takes one sample.
        rounds: Number of rounds; None for as many as fit into ``seconds``, and at least ``least``.
        seconds: Time for all rounds, including the discarded one and all overheads.
        least: Rounds that are run whatever they take.

    Returns:
        Name -> one sample per round.
    """
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin = start = time.perf_counter()
    for sampler in samplers.values():
        sampler()
    for index in range(MAX_ROUNDS if rounds is None else rounds):
        start, last = time.perf_counter(), start
        if rounds is None and index >= least and 2 * start - last >= begin + seconds:
            break  # another one as long as the last would not fit
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(samplers[name]())
    return samples


class Timer(Protocol):
    """Makes samplers of functions to time."""

    def prepare(self) -> Arguments:
        """Prepare the caches for a call, and return its arguments."""

    def start(self, run: Run, *, again: bool = False) -> Sampler:
        """Warm up, briefly if ``again``, and return the function that takes a sample."""


def input_bytes(arguments: Arguments) -> int:
    """Count the bytes of a call's tensors, shared storage once."""
    positional, keywords = arguments
    tensors = (x for x in (*positional, *keywords.values()) if isinstance(x, Tensor))
    storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in tensors)}
    return sum(storages.values())


class CpuTimer:
    """Times each call by the clock of the process.

    Attributes:
        copies: Number of copies of the inputs that calls alternate between.
        flushes: Whether a buffer is written before each call instead.
    """

    def __init__(self, arguments: Arguments, *, hot: bool = False) -> None:
        """Copy the inputs as often as needed to fill twice the last-level cache."""
        cache = last_level_cache()
        wanted = 1 if hot else max(2, -(-COLD_CACHES * cache // max(1, input_bytes(arguments))))
        self.flushes = wanted > MAX_COPIES
        self.copies = 1 if self.flushes else wanted
        # deepcopy keeps strides, and views of one storage remain views of one storage.
        sets = [arguments, *(copy.deepcopy(arguments) for _ in range(self.copies - 1))]
        self._sets = itertools.cycle(sets)
        self._buffer = torch.empty(COLD_CACHES * cache // 4) if self.flushes else None
        self._hot = hot
        self._flush()  # touches its new pages
        begin = time.perf_counter()
        self._flush()
        self._flush_seconds = time.perf_counter() - begin

    def start(self, run: Run, *, again: bool = False) -> Sampler:
        """Warm up until the heap has the memory: some calls, and some time."""
        calls, seconds = (1, 0.0) if again else (WARM_CALLS, WARM_SECONDS["cpu"])
        begin, times = time.perf_counter(), list[float]()
        while (spent := time.perf_counter() - begin) < SLOW_SECONDS:
            if len(times) >= calls and spent >= seconds:
                break
            times.append(self._call(run, flush=False))
        seconds = min(times) + self._flush_seconds
        calls = max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / seconds)))

        def sample() -> float:
            if self._hot:  # another sampler's turn has filled the cache
                self._call(run)
            return float(np.median([self._call(run) for _ in range(calls)]))

        return sample

    def prepare(self) -> Arguments:
        """Prepare the caches for a call, and return its arguments."""
        self._flush()
        return next(self._sets)

    def _flush(self) -> None:
        if self._buffer is not None:
            self._buffer.fill_(1.0)

    def _call(self, run: Run, *, flush: bool = True) -> float:
        if flush:
            self._flush()
        positional, keywords = next(self._sets)
        begin = time.perf_counter()
        run(*positional, **keywords)
        return time.perf_counter() - begin
