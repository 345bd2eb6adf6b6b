"""The least time an op can take on this machine, from measured bandwidth and matrix rate.

A case's floor is max(bytes / bandwidth, flops / rate) with the op's own cost. Both limits are
measured in the same rounds as the op: bandwidth by the better of a large copy and a large sum of
two buffers (counting their reads and writes), the rate by a large matrix product in the case's
dtype.
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
CPU_BUFFER = 256 << 20  # maximum, unless the last-level cache is larger
FP8_CAPABILITY = (8, 9)
ROUGH_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Upper limits of the machine.

    Attributes:
        bandwidth: Bytes per second.
        rate: Floating-point operations per second.
    """

    bandwidth: float
    rate: float

    def floor(self, cost: Cost) -> float:
        """Compute the least seconds of a case."""
        return max(cost.bytes / self.bandwidth, cost.flops / self.rate)

    def bound(self, cost: Cost) -> str:
        """Name what sets the floor: ``memory`` or ``compute``."""
        return "memory" if cost.bytes / self.bandwidth >= cost.flops / self.rate else "compute"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One measurement of a limit.

    Attributes:
        run: Function that is timed.
        amount: Bytes that it moves, or operations that it performs.
        limit: ``bandwidth`` or ``rate``.
    """

    run: Callable[[], Any]
    amount: int
    limit: str


def make_probes(device: torch.device, dtype: torch.dtype) -> dict[str, Probe]:
    """Build the probes by name: ``copy`` and ``sum`` for bandwidth, ``gemm`` for the rate.

    Args:
        device: The device.
        dtype: Dtype of the matrix product; replaced by bf16 on a device without FP8 products, and
            by fp32 on a CPU without bf16 products.
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
    """Choose the size of the CPU probes' three buffers: larger than the cache, yet quick to time.

    It stays within the available memory, even if the cache's bandwidth is then measured.
    """
    cache = last_level_cache()
    return min(max(cache, min(4 * cache, CPU_BUFFER)), memory().available // 8)


def gemm_dtype(case: Case) -> torch.dtype:
    """Return the dtype of a case's products: FP8 for FP8 operands, else the activations'."""
    on_meta = dataclasses.replace(case, device=torch.device("meta"))
    positional, keywords = load_op(case.op).make_inputs(on_meta, Generator())
    tensors = [x for x in (*positional, *keywords.values()) if isinstance(x, Tensor)]
    return FP8 if any(x.dtype == FP8 for x in tensors) else case.dtype


def start_probes(device: torch.device, probes: Mapping[str, Probe]) -> dict[str, Sampler]:
    """Build samplers of the probes, whose buffers are larger than any cache.

    On a CPU a sample is one call without warm-up; the uncounted first round provides that.
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
    """Compute the limits from the medians of their probes.

    Args:
        probes: The probes.
        samples: Seconds by name; probes without samples are ignored.
        rough: Limits to use if no probe was sampled.
    """
    best = {"bandwidth": rough.bandwidth, "rate": rough.rate} if rough else {}
    measured: dict[str, float] = {}
    for name, probe in probes.items():
        if samples.get(name):
            value = probe.amount / float(np.median(samples[name]))
            measured[probe.limit] = max(value, measured.get(probe.limit, 0.0))
    return Roofline(**(best | measured))


class Limits:
    """Probes and rough limits of a device, created per requested dtype."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing measured."""
        self._device = device
        self._known: dict[torch.dtype, tuple[dict[str, Probe], Roofline]] = {}

    def of(self, case: Case) -> tuple[dict[str, Probe], Roofline]:
        """Return the probes for a case, and limits from a few samples, to estimate times."""
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
        # Random: multiplying constants draws less power, and the clock rises by 13 %.
        left, right = (torch.randn(size, size, device=device).to(FP8) for _ in range(2))
        return lambda: torch._scaled_mm(
            left, right.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    wide = product_dtype(device, torch.bfloat16 if dtype == FP8 else dtype)
    a, b = (torch.randn(size, size, device=device).to(wide) for _ in range(2))
    return lambda: a @ b
