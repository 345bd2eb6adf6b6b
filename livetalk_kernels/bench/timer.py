"""Timing calls that alternate: rounds of samples, on a CPU or a GPU.

A shared machine drifts by 5 to 20 % within minutes. So all that is compared takes turns, one sample
each per round, and is compared round by round.

Cold means that a call finds its inputs in memory, not in a cache, as it does in a model whose
layers hold more than a cache. On a CPU calls take turns on several copies of the inputs, together
larger than the last-level cache; where that would need too many copies, a buffer of that size is
written before each call. That takes longer than a small call does, so a sample then has fewer
calls: the time that is asked for holds with all that it costs. On a GPU, see `cuda_timer`, a buffer
twice as large as L2 is written and read before each call. A call allocates its outputs, as in the
model, and frees them within the time that is measured.
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
COLD_CACHES = 2  # what copies of the inputs, or a buffer, take: so many last-level caches
WARM_CALLS, WARM_SECONDS = CALLS_UNTIL_KEPT, {"cpu": 0.05, "cuda": 0.2}
SLOW_SECONDS = 2.0  # for a CPU's warm-up
SAMPLE_SECONDS = 0.005  # a sample is the median of as many calls as fit
MAX_CALLS = 50


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Samples in brief, in seconds.

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
        """Distance of p20 and p80, relative to the median."""
        return (self.p80 - self.p20) / self.p50


def ratio(base: Sequence[float], own: Sequence[float]) -> float:
    """How many times faster ``own`` is than ``base``: the median of the rounds' ratios."""
    return float(np.median(np.asarray(base) / np.asarray(own)))


def interleave(
    samplers: Mapping[str, Sampler],
    *,
    rounds: int | None = None,
    seconds: float = 1.0,
    least: int = MIN_ROUNDS,
) -> dict[str, list[float]]:
    """Take turns; each round begins with another one. A round before them is not counted.

    Args:
        samplers: Name -> what takes one sample.
        rounds: Number of rounds; None: as many as fit into ``seconds``, and at least ``least``.
        seconds: Time for all rounds, with the one that is not counted and all that they cost.
        least: Rounds that are made whatever they take.

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
            break  # one more, as long as the last one, would not fit
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(samplers[name]())
    return samples


class Timer(Protocol):
    """Makes a sampler of what is to be timed."""

    def prepare(self) -> Arguments:
        """Make the caches ready for a call, and give its arguments."""

    def start(self, run: Run, *, again: bool = False) -> Sampler:
        """Warm up, briefly if ``again``, and give the function that takes a sample."""


def input_bytes(arguments: Arguments) -> int:
    """Bytes of a call's tensors, shared storage counted once."""
    positional, keywords = arguments
    tensors = (x for x in (*positional, *keywords.values()) if isinstance(x, Tensor))
    storages = {s.data_ptr(): s.nbytes() for s in (x.untyped_storage() for x in tensors)}
    return sum(storages.values())


class CpuTimer:
    """Times each call by the clock of the process.

    Attributes:
        copies: Number of copies of the inputs that calls take turns on.
        flushes: A buffer is written before each call instead.
    """

    def __init__(self, arguments: Arguments, *, hot: bool = False) -> None:
        """Copy the inputs as often as it takes to fill twice the last-level cache."""
        cache = last_level_cache()
        wanted = 1 if hot else max(2, -(-COLD_CACHES * cache // max(1, input_bytes(arguments))))
        self.flushes = wanted > MAX_COPIES
        self.copies = 1 if self.flushes else wanted
        # deepcopy keeps strides, and views of one storage stay views of one storage.
        sets = [arguments, *(copy.deepcopy(arguments) for _ in range(self.copies - 1))]
        self._sets = itertools.cycle(sets)
        self._buffer = torch.empty(COLD_CACHES * cache // 4) if self.flushes else None
        self._hot = hot
        self._flush()  # its pages are new
        begin = time.perf_counter()
        self._flush()
        self._flush_seconds = time.perf_counter() - begin

    def start(self, run: Run, *, again: bool = False) -> Sampler:
        """Warm up until memory is known to the heap: some calls, and some time."""
        calls, seconds = (1, 0.0) if again else (WARM_CALLS, WARM_SECONDS["cpu"])
        begin, times = time.perf_counter(), list[float]()
        while (spent := time.perf_counter() - begin) < SLOW_SECONDS:
            if len(times) >= calls and spent >= seconds:
                break
            times.append(self._call(run, flush=False))
        seconds = min(times) + self._flush_seconds
        calls = max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / seconds)))

        def sample() -> float:
            if self._hot:  # another one's turn has filled the cache
                self._call(run)
            return float(np.median([self._call(run) for _ in range(calls)]))

        return sample

    def prepare(self) -> Arguments:
        """Make the caches ready for a call, and give its arguments."""
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
