"""Who keeps the CPUs busy: counted by the system, as seen from one process."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from livetalk_kernels.neighbours import CpuShares, CpuWatch

ALONE = CpuShares(usable=4, own=3.9, others=0.1, switches=3, seconds=1.0)


def stat(folder: Path, busy: int) -> None:
    """A system of one CPU that this process may run on, and one that it may not."""
    here, there = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)) + 1
    file = folder / "proc/stat"
    file.parent.mkdir(exist_ok=True)
    # User, nice, system, idle, waiting, interrupts, soft ones, stolen, two of guests.
    counts = f"{busy} {busy} {busy} 777 777 {busy} {busy} {busy} 777 777"
    lines = [f"cpu  {counts}", f"cpu{here} {counts}", f"cpu{there}" + " 999" * 10, "ctxt 5"]
    file.write_text("\n".join(lines))


def test_others_are_what_is_busy_without_us(tmp_path: Path):
    stat(tmp_path, 0)
    watch = CpuWatch(tmp_path)
    time.sleep(1)
    stat(tmp_path, 10)
    shares = watch.read()
    assert shares is not None and shares.seconds >= 1 and shares.switches >= 0
    busy = 60 / os.sysconf("SC_CLK_TCK") / shares.seconds
    assert shares.others + shares.own == pytest.approx(busy) and shares.own < 0.2 * busy


def test_a_system_that_does_not_count(tmp_path: Path):
    assert CpuWatch(tmp_path).read() is None


def test_a_neighbour_is_seen():
    watch = CpuWatch()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(1)
        shares = watch.read()
        other.kill()
    assert shares is not None
    assert shares.own < 0.5 and 0.3 < shares.others <= (os.cpu_count() or 1) + 0.1


@pytest.mark.parametrize(
    ("usable", "threads", "others", "end"),
    [
        (4, 4, 0.1, ""),
        (4, 3, 1.0, ""),
        (4, 2, 1.0, ""),
        (4, 4, 1.0, "OMP_NUM_THREADS=3."),
        (4, 4, 2.1, "OMP_NUM_THREADS=2."),
        (4, 4, 4.0, "OMP_NUM_THREADS=1."),
        (1, 1, 0.9, "stop the others."),
    ],
)
def test_the_cure_names_the_threads_that_fit(usable: int, threads: int, others: float, end: str):
    text = replace(ALONE, usable=usable, others=others).crowded(threads)
    assert text.endswith(end) and bool(text) == bool(end)
