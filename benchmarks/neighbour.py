"""Measure what a busy neighbour on one CPU costs, and whether fewer threads or other waiting helps.

    python benchmarks/neighbour.py --rounds 5 --output neighbour.json

Each run is a separate process: some ops at sizes of ``mid``, repeated, timed by the clock. Ways to
run are interleaved, alone and next to a neighbour that is pinned to the last CPU. Nothing else may
be running: the load is printed. CPU only.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk_kernels.bench.cases import select_cases
from livetalk_kernels.bench.runner import make_inputs, packed
from livetalk_kernels.dispatch import pick
from livetalk_kernels.heap import keep_freed_memory
from livetalk_kernels.machine import cpus, machine
from livetalk_kernels.neighbours import CpuWatch
from livetalk_kernels.outputs import write_json

OPS = {"rms_norm_silu": "mid_full", "chunk_attention": "mid", "causal_conv3d": "mid_latent"}
CALLS = 40  # of all ops per run
SPIN = "import os; os.sched_setaffinity(0, {{{}}})\nwhile True: pass"


def ways(cpus_here: int) -> dict[str, dict[str, str]]:
    """Map names to environment settings of processes that run this way."""
    all_threads = {"OMP_NUM_THREADS": str(cpus_here)}
    return {
        "all threads": all_threads,
        "passive": all_threads | {"OMP_WAIT_POLICY": "passive"},
        "spin 1000": all_threads | {"GOMP_SPINCOUNT": "1000"},
        "one fewer": {"OMP_NUM_THREADS": str(cpus_here - 1)},
    }


def work() -> float:
    """Time the calls, after a warm-up."""
    keep_freed_memory()
    device, calls = torch.device("cpu"), list[Callable[[], Any]]()
    for op, name in OPS.items():
        found = select_cases(op, device, torch.float32)
        case = next(case for case in found if case.name.startswith(name))
        arguments = make_inputs(case)
        run = packed(op, "cpu", pick(case, "auto", named=False).run, arguments)
        calls.append(partial(run, *arguments[0], **arguments[1]))
    with torch.inference_mode():
        for index in range(CALLS + 2):
            if index == 2:
                begin = time.perf_counter()
            for call in calls:
                call()
    return time.perf_counter() - begin


def measure(environ: dict[str, str], *, busy: int) -> float:
    """Time a run, next to a neighbour on CPU ``busy`` unless negative."""
    neighbour = busy >= 0 and subprocess.Popen([sys.executable, "-c", SPIN.format(busy)])
    try:
        command = [sys.executable, __file__, "--child"]
        done = subprocess.run(command, env=os.environ | environ, stdout=subprocess.PIPE, check=True)
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    return float(done.stdout)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(work())
        return
    here, here_now = cpus().usable, machine()
    watch = CpuWatch()
    time.sleep(1)
    before = watch.read()
    print(f"other programs keep {before.others if before else float('nan'):.1f} CPUs busy")
    last = max(os.sched_getaffinity(0))
    seconds: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, environ in ways(here).items():
            for busy in (-1, last):
                key = name + (", one neighbour" if busy >= 0 else ", alone")
                seconds.setdefault(key, []).append(measure(environ, busy=busy))
    base = seconds["all threads, alone"]
    for name, own in seconds.items():
        ratio = float(np.median(np.divide(own, base)))
        print(f"{name:28s} {np.median(own):7.2f} s  {ratio:5.2f} x all threads, alone")
    if args.output:
        others = before.others if before else None
        write_json(args.output, {"machine": here_now, "others": others, "seconds": seconds})


if __name__ == "__main__":
    main()
