"""Time every op on each instruction set of this CPU: is ``auto``'s choice the fastest?

    python benchmarks/tiers.py --dtype fp32 --output tiers.json
    python benchmarks/tiers.py --tier avx2 --op causal_conv3d --output tiers.json

Each set has a process of its own, whose oneDNN, MKL and PyTorch are held to that set too. Backends
take turns on one thread, with the caches flushed before each call. CPU time is compared, since on a
busy machine the clock says nothing. The ratio is the median of the rounds': the fastest other
backend's time over that of ``auto``. Results are not checked: the tests do that on every set.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk_kernels import UserError
from livetalk_kernels.backends import cpu
from livetalk_kernels.bench.baseline import EAGER
from livetalk_kernels.bench.cases import select_cases
from livetalk_kernels.bench.report import AUTO_SLACK
from livetalk_kernels.bench.runner import Settings, contestants, is_interpreted, make_inputs, packed
from livetalk_kernels.bench.timers import make_timer
from livetalk_kernels.heap import keep_freed_memory
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.registry import load_op, op_names
from livetalk_kernels.spec import Arguments, Case

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIBRARIES = {  # tier -> the most that oneDNN, MKL, and PyTorch's own and compiled loops may use
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    },
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {},
}
LEAST_ROUNDS, SECONDS = 5, 0.4  # CPU time for a case's rounds
MOST_FLOPS = 40e9  # larger cases are skipped, and named


def cpu_seconds(run: Callable[..., Any], arguments: Arguments) -> float:
    """Measure the CPU time of a call."""
    positional, keywords = arguments
    begin = time.thread_time()
    run(*positional, **keywords)
    return time.thread_time() - begin


def measure_case(case: Case) -> dict[str, Any]:
    """Time all exact backends that can run a case, interleaved."""
    arguments = make_inputs(case)
    found = [
        one
        for one in contestants(case, Settings())
        if one.run is not None
        and not one.row.approximate
        and (one.row.backend == EAGER or not is_interpreted(case, one.row.backend))
    ]
    runs = {}
    for one in found:
        assert one.run is not None
        packs = one.row.backend != EAGER
        runs[one.row.backend] = (
            packed(case.op, one.row.backend, one.run, arguments) if packs else one.run
        )
    auto = next(one.row.backend for one in found if one.row.auto)
    timer = make_timer(CPU, arguments, hot=False)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        cpu_seconds(run, timer.prepare())
    names, begin = list(runs), time.thread_time()
    while len(samples[auto]) < LEAST_ROUNDS or time.thread_time() - begin < SECONDS:
        names = [*names[1:], names[0]]
        for name in names:
            samples[name].append(cpu_seconds(runs[name], timer.prepare()))
    medians = {name: float(np.median(own)) for name, own in samples.items()}
    rivals = {name: value for name, value in medians.items() if name != auto}
    rival = min(rivals, key=rivals.__getitem__)
    ratio = float(np.median(np.divide(samples[rival], samples[auto])))
    entry = {"op": case.op, "case": case.name, "dims": dict(case.dims), "options": case.options}
    return {**entry, "auto": auto, "rival": rival, "ratio": ratio, "seconds": medians}


def measure_tier(tier: str, dtype: torch.dtype, ops: list[str]) -> dict[str, Any]:
    """Time all cases on this process's instruction set; progress goes to stderr."""
    torch.ops.livetalk.use_isa(tier)
    torch.set_num_threads(1)
    keep_freed_memory()
    rows, large = [], []
    cases = [c for op in ops if dtype in load_op(op).dtypes for c in select_cases(op, CPU, dtype)]
    with torch.inference_mode():
        for index, case in enumerate(cases, 1):
            if load_op(case.op).cost(case).flops > MOST_FLOPS:
                large.append(f"{case.op} {case.name}")
                continue
            print(f"{tier} [{index}/{len(cases)}] {case.op} {case.name}", file=sys.stderr)
            rows.append(measure_case(case))
    return {"tier": tier, "cases": rows, "left_out": large}


def run_tier(tier: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a tier in a separate process."""
    ops = [word for op in args.op for word in ("--op", op)]
    command = [sys.executable, __file__, "--child", "--tier", tier, "--dtype", args.dtype, *ops]
    environ = os.environ | LIBRARIES[tier]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(tiers: list[dict[str, Any]]) -> str:
    """Format one line per case; mark what is more than 5 % slower than the fastest."""
    head = f"{'tier':12s} {'op and case':34s} {'auto':9s} {'ms':>8s}  {'next':9s} {'ratio':>5s}"
    lines = [head]
    for tier in tiers:
        for row in tier["cases"]:
            loss = "" if row["ratio"] * AUTO_SLACK >= 1 else " loss"
            lines.append(
                f"{tier['tier']:12s} {row['op'] + ' ' + row['case']:34s} {row['auto']:9s} "
                f"{row['seconds'][row['auto']] * 1e3:8.3f}  {row['rival']:9s} "
                f"{row['ratio']:5.2f}{loss}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    idle = cpu.idle_isas() if cpu.missing() is None else dict(LIBRARIES)
    here = [tier for tier in LIBRARIES if tier not in idle]
    parser.add_argument("--tier", action="append", choices=here, help="default: all")
    parser.add_argument("--op", action="append", default=[], choices=op_names(), metavar="OP")
    parser.add_argument("--dtype", default="fp32", choices=sorted(DTYPES))
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not here:
        raise UserError("no instruction set with compiled kernels here; see 'livetalk backends'")
    tiers = args.tier or here
    if args.child:
        print(json.dumps(measure_tier(tiers[0], DTYPES[args.dtype], args.op or op_names())))
        return
    here_now = machine()
    found = [run_tier(tier, args) for tier in tiers]
    print(table(found))
    if args.output:
        write_json(args.output, {"machine": here_now, "dtype": args.dtype, "tiers": found})


if __name__ == "__main__":
    main()
