"""How fast the machine is right now: a matrix product that is the same in every session."""

import time
from collections.abc import Callable

import torch

SIZE = {"cpu": 768, "cuda": 4096}
REPEATS = 3


def make_probe(device: torch.device) -> Callable[[], float]:
    """A function that gives the seconds of one product: the median of three."""
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
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
