"""Measures how fast the machine is right now, by a matrix product that never changes."""

import time
from collections.abc import Callable

import torch

SIZE = {"cpu": 768, "cuda": 4096}
REPEATS = 3


def make_probe(device: torch.device) -> Callable[[], float]:
    """Create a function that returns the seconds of one product: the median of three."""
    size = SIZE[device.type]
    a, b = (torch.ones(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)

    def once() -> float:
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        wait(device)
        return time.perf_counter() - begin

    def probe() -> float:
        wait(device)
        return sorted(once() for _ in range(REPEATS))[REPEATS // 2]

    return probe


def wait(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
