"""Measures how busy the CPUs are, and whether with this process or with others.

Threads that compute one op wait for the slowest of them. A thread whose CPU another program holds
is late in every op, so a run loses far more than the other program's share.
"""

import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import ROOT, cpus

_NOTABLE = 0.25  # CPUs: any system uses up to this much in the background


@dataclass(frozen=True, kw_only=True)
class CpuShares:
    """Who kept the CPUs busy over an interval; numbers of CPUs, on average.

    Attributes:
        usable: What this process may use: see `livetalk_kernels.machine.Cpus`.
        own: Kept busy by this process and its terminated children.
        others: Kept busy by other programs, on the CPUs that this process may run on.
        switches: Involuntary context switches of this process's threads.
        seconds: Length of the interval.
    """

    usable: int
    own: float
    others: float
    switches: int
    seconds: float

    def crowded(self, threads: int) -> str:
        """Describe contention, and the cure, if one of ``threads`` busy threads shared its CPU."""
        if self.others < _NOTABLE or threads + self.others < self.usable + _NOTABLE:
            return ""
        left = max(1, self.usable - math.ceil(self.others - _NOTABLE))
        cure = f", or leave them a CPU by OMP_NUM_THREADS={left}" if left < threads else ""
        return (
            f"Other programs kept {self.others:.1f} of {self.usable} CPUs busy, and threads wait "
            f"for the slowest of them: stop the others{cure}."
        )


class CpuWatch:
    """Compares the system's counters between two moments."""

    def __init__(self, root: Path = ROOT) -> None:
        """Start the interval.

        Args:
            root: Folder that holds ``proc``; tests pass their own.
        """
        self._root = root
        self._affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        self._begin = self._counters()

    def read(self) -> CpuShares | None:
        """Return what happened since the start; None if the system does not count."""
        now, begin = self._counters(), self._begin
        if now is None or begin is None or now[0] <= begin[0]:
            return None
        seconds, busy, own, switches = (a - b for a, b in zip(now, begin, strict=True))
        here = cpus(self._root)
        return CpuShares(
            usable=here.usable,
            own=own / seconds,
            others=min(max(0.0, busy - own) / seconds, here.affinity),  # ticks are coarse
            switches=int(switches),
            seconds=seconds,
        )

    def _counters(self) -> tuple[float, float, float, float] | None:
        """Return the clock, CPU seconds of all programs and of this one, involuntary switches."""
        file = self._root / "proc/stat"
        if not file.is_file():
            return None
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        ticks = sum(
            # User, nice, system, hardware and software interrupts, and time stolen by a hypervisor.
            sum(int(words[place]) for place in (1, 2, 3, 6, 7, 8))
            for words in lines
            if words[0].startswith("cpu") and words[0] != "cpu" and self._ours(int(words[0][3:]))
        )
        times = os.times()
        own = sum(times[:4])
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own, switches

    def _ours(self, cpu: int) -> bool:
        return self._affinity is None or cpu in self._affinity
