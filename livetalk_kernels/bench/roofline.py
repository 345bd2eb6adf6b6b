"""The least time that an op can take on this machine: measured bandwidth and matrix rate.

A case's floor is max(bytes / bandwidth, flops / rate) with the op's own cost. Both limits are
measured beside the op, in the same rounds: bandwidth by the better of a large copy and a large
sum of two buffers (their own reads and writes counted), the rate by a large matrix product in the
case's dtype.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..backends.cpu import product_dtype
from ..machine import last_level_cache, memory
from ..precision import FP8
from ..registry import load_op
from ..spec import Case, Cost
from .timer import Sampler, interleave
from .timers import make_timer

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
GPU_BUFFER = 1 << 30  # bytes
CPU_BUFFER = 256 << 20  # at most, unless the last-level cache is larger
FP8_CAPABILITY = (8, 9)
ROUGH_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What the machine can do at most.

    Attributes:
        bandwidth: Bytes per second.
        rate: Floating-point operations per second.
    """

    bandwidth: float
    rate: float

    def floor(self, cost: Cost) -> float:
        """Least seconds of a case."""
        return max(cost.bytes / self.bandwidth, cost.flops / self.rate)

    def bound(self, cost: Cost) -> str:
        """What sets the floor: ``memory`` or ``compute``."""
        return "memory" if cost.bytes / self.bandwidth >= cost.flops / self.rate else "compute"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One measurement of a limit.

    Attributes:
        run: What is timed.
        amount: Bytes that it moves, or operations that it does.
        limit: ``bandwidth`` or ``rate``.
    """

    run: Callable[[], Any]
    amount: int
    limit: str


def make_probes(device: torch.device, dtype: torch.dtype) -> dict[str, Probe]:
    """Name -> probe: ``copy`` and ``sum`` for the bandwidth, ``gemm`` for the rate.

    Args:
        device: The device.
        dtype: Dtype of the matrix product; FP8 where the device has no such product is bf16, and
            bf16 where a CPU has none is fp32.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        count = min(GPU_BUFFER, free // 8) // 4
    else:
        count = probe_bytes() // 4
    a, b, out = (torch.ones(count, device=device) for _ in range(3))
    size = GEMM_SIZE[device.type]
    return {
        "copy": Probe(run=lambda: out.copy_(a), amount=2 * a.nbytes, limit="bandwidth"),
        "sum": Probe(run=lambda: torch.add(a, b, out=out), amount=3 * a.nbytes, limit="bandwidth"),
        "gemm": Probe(run=_product(device, dtype, size), amount=2 * size**3, limit="rate"),
    }


def probe_bytes() -> int:
    """Size of one of the CPU probes' three buffers: larger than the cache, and time is not wasted.

    It keeps within the memory that is available, though bandwidth then may be the cache's.
    """
    cache = last_level_cache()
    return min(max(cache, min(4 * cache, CPU_BUFFER)), memory().available // 8)


def gemm_dtype(case: Case) -> torch.dtype:
    """Dtype of a case's products: FP8 where a call takes FP8 operands, else the activations'."""
    on_meta = dataclasses.replace(case, device=torch.device("meta"))
    positional, keywords = load_op(case.op).make_inputs(on_meta, Generator())
    tensors = [x for x in (*positional, *keywords.values()) if isinstance(x, Tensor)]
    return FP8 if any(x.dtype == FP8 for x in tensors) else case.dtype


def start_probes(device: torch.device, probes: Mapping[str, Probe]) -> dict[str, Sampler]:
    """Samplers of the probes; their buffers are larger than any cache.

    On a CPU a sample is one call, and nothing warms up: the round that is not counted does.
    """
    if device.type == "cpu":
        return {name: functools.partial(_time_once, probe.run) for name, probe in probes.items()}
    timer = make_timer(device, ((), {}), hot=True)
    return {name: timer.start(probe.run) for name, probe in probes.items()}


def _time_once(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def from_samples(
    probes: Mapping[str, Probe],
    samples: Mapping[str, list[float]],
    rough: Roofline | None = None,
) -> Roofline:
    """The limits by their probes' medians.

    Args:
        probes: The probes.
        samples: Seconds by name; probes that were not sampled are left out.
        rough: Limits to take where no probe was sampled.
    """
    best = {"bandwidth": rough.bandwidth, "rate": rough.rate} if rough else {}
    measured: dict[str, float] = {}
    for name, probe in probes.items():
        if samples.get(name):
            value = probe.amount / float(np.median(samples[name]))
            measured[probe.limit] = max(value, measured.get(probe.limit, 0.0))
    return Roofline(**(best | measured))


class Limits:
    """The probes of a device, and what they say roughly, for every dtype that is asked for."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is measured yet."""
        self._device = device
        self._known: dict[torch.dtype, tuple[dict[str, Probe], Roofline]] = {}

    def of(self, case: Case) -> tuple[dict[str, Probe], Roofline]:
        """The probes for a case, and the limits by a few samples, to estimate times."""
        dtype = gemm_dtype(case)
        if dtype not in self._known:
            probes = make_probes(self._device, dtype)
            samples = interleave(start_probes(self._device, probes), rounds=ROUGH_ROUNDS)
            self._known[dtype] = probes, from_samples(probes, samples)
        return self._known[dtype]


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], Tensor]:
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    if dtype == FP8 and has_fp8:
        one = torch.ones((), device=device)
        # Random: multiplying constants takes less power, and the clock rises by 13 %.
        left, right = (torch.randn(size, size, device=device).to(FP8) for _ in range(2))
        return lambda: torch._scaled_mm(
            left, right.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    wide = product_dtype(device, torch.bfloat16 if dtype == FP8 else dtype)
    a, b = (torch.randn(size, size, device=device).to(wide) for _ in range(2))
    return lambda: a @ b
