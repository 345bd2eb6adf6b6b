"""Time every op at the model's sizes on every backend, like ``livetalk bench all``, in a budget.

    python benchmarks/ops_all.py --json ops.json --budget 60
    python benchmarks/ops_all.py --device cpu --op add_norm --no-compile

The rows are those of ``livetalk bench --json``. Ops alternate: first one case of each, then the
next of each. The file is written after every case, and ``--resume`` continues from it. Needs no
package beyond torch, Triton and NumPy.
"""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from race import NO_TIME, Budget, Output, new_parser, resolve, run_main, say

from livetalk_kernels.bench.cases import select_cases, too_large
from livetalk_kernels.bench.report import RED, TIMED
from livetalk_kernels.bench.roofline import Limits
from livetalk_kernels.bench.runner import Settings
from livetalk_kernels.bench.score import Score, Standing
from livetalk_kernels.bench.suite import ALL, attempt, known_ops
from livetalk_kernels.heap import keep_freed_memory
from livetalk_kernels.inputs import REPORT_BYTES, is_file, read_json
from livetalk_kernels.lines import brief
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.registry import load_op
from livetalk_kernels.spec import Case

SCHEMA = "livetalk/ops/2"  # rows as in livetalk/bench/2; version 1 is measured again
SAME = ("gpu", "cpu", "torch", "triton", "commit")  # of the machine
LOST = "CUDA error"
LARGEST = "14b"


def ordered_cases(ops: list[str], device: torch.device, dtype: torch.dtype) -> list[Case]:
    """Order cases: the first of each op, then the second, and so on; published sizes first."""
    by_op = [select_cases(op, device, dtype) for op in ops if dtype in load_op(op).dtypes]
    rows = itertools.zip_longest(*by_op)
    found = [case for row in rows for case in row if case is not None]
    return sorted(found, key=lambda case: LARGEST not in case.name)


Known = dict[tuple[str, str], Any]


def earlier(path: Path | None, now: Mapping[str, Any]) -> tuple[Known, set[tuple[str, str]]]:
    """Read from a file what was measured on this machine with this code.

    Returns:
        (op, case) -> the case, and those that failed; empty without such a file.
    """
    if path is None or not is_file(path):
        return {}, set()
    before = read_json(path, "report", cure="use another --output", limit=REPORT_BYTES)
    keys = ("name", "uuid", "count")

    def same(name: str) -> bool:
        a, b = before["machine"].get(name), now["machine"].get(name)
        if name == "gpu" and a and b:
            return [a.get(key) for key in keys] == [b.get(key) for key in keys]
        return bool(a == b)

    dtype = now["dtype"] == before["settings"]["dtype"]
    if before.get("schema") != SCHEMA or not dtype or not all(map(same, SAME)):
        return {}, set()
    known = {(case["op"], case["case"]): case for case in before["cases"]}
    return known, {(entry["op"], entry["case"]) for entry in before["failed"]}


def measure(args: argparse.Namespace, budget: Budget) -> Output:
    """Time case after case.

    Raises:
        UserError: An option is invalid.
    """
    device, dtype = resolve(args)
    ops = known_ops(args.op or [ALL])
    settings = Settings(compile=not args.no_compile, seconds=args.seconds, rounds=args.rounds)
    output = Output(
        args.json,
        schema=SCHEMA,
        settings={
            "device": str(device),
            "dtype": dtype_name(dtype),
            "compile": settings.compile,
            "keeps_freed_memory": keep_freed_memory(),
        },
        cases=[],
        skipped=[],
        failed=[],
    )
    now = {"machine": output.value["machine"], "dtype": dtype_name(dtype)}
    known, broken = earlier(args.json, now) if args.resume else ({}, set())
    limits = Limits(device)
    cases = ordered_cases(ops, device, dtype)
    # Cases that have broken the GPU's context before come last.
    cases.sort(key=lambda case: (case.op, case.name) in broken)
    for index, case in enumerate(cases, 1):
        entry = known.get((case.op, case.name))
        if entry is None:
            entry = timed(case, settings, limits, budget, f"[{index}/{len(cases)}]")
        kind = entry.pop("in", "cases")
        output.value[kind].append(entry)
        output.write()
        if kind == "failed" and LOST in entry["reason"]:
            break
    left = [entry for entry in output.value["skipped"] if entry["reason"] == NO_TIME]
    output.value["complete"] = not left and len(cases) == sum(
        len(output.value[kind]) for kind in ("cases", "skipped", "failed")
    )
    found = score(output.value)
    output.value["score"] = found and found.as_json()
    output.write()
    return output


def score(output: Mapping[str, Any]) -> Score | None:
    """Score our kernels over all cases, against the best rival and the floor."""
    return Score.of(
        {
            f"{case['op']} {case['case']}": case["standing"] and Standing(**case["standing"])
            for case in output["cases"]
        }
    )


def timed(
    case: Case, settings: Settings, limits: Limits, budget: Budget, head: str
) -> dict[str, Any]:
    """Report a case like `livetalk bench`; ``in`` says where it belongs if it was not timed."""
    entry = {"op": case.op, "case": case.name}
    if budget.left() <= 0:
        return {**entry, "in": "skipped", "reason": NO_TIME}
    say(f"{head} {case.op} {case.name}")
    try:
        found = too_large(case) or attempt(case, settings, limits, lambda text: None)
    except Exception as error:  # whatever it fails with, the other cases continue
        return {**entry, "in": "failed", "reason": brief(error)}
    if isinstance(found, str):
        return {**entry, "in": "skipped", "reason": found}
    return found.as_json()


def table(output: Mapping[str, Any]) -> str:
    """The result for people."""
    lines = [f"{'':62s} {'us':>10s} {'GB/s':>8s} {'TFLOP/s':>8s} {'floor %':>8s} {'eager':>7s}"]
    for case in output["cases"]:
        for row in case["backends"]:
            name = f"{case['op']} {case['case']} {row['backend']}"
            if row["time"] is None:
                lines.append(f"{name:62s} {row['state']}: {row['note'][:80]}")
                continue
            lines.append(
                f"{name:62s} {row['time']['p50'] * 1e6:10.1f} {row['gb_per_s']:8.1f} "
                f"{row['tflop_per_s']:8.3g} {row['of_floor'] * 100:8.1f} {row['vs_eager']:6.2f}x"
            )
    for kind in ("skipped", "failed"):
        lines += [f"{e['op']} {e['case']}: {kind}: {e['reason']}" for e in output[kind]]
    lines += filter(None, [str(score(output) or "")])
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__, model=False)
    parser.add_argument("--op", action="append", default=[], metavar="OP", help="default: all")
    parser.add_argument("--seconds", type=float, default=0.5, help="for a case's rounds")
    parser.add_argument("--rounds", type=int, help="per case (default: by --seconds)")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    parser.add_argument("--resume", action="store_true", help="keep the cases in the file")
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    output = measure(args, Budget.of(args)).value
    print(table(output))
    rows = [row for case in output["cases"] for row in case["backends"]]
    red = any(row["state"] == RED for row in rows)
    return 1 if red or output["failed"] or not any(r["state"] == TIMED for r in rows) else 0


if __name__ == "__main__":
    run_main(main)
