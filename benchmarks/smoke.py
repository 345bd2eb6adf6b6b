"""Call every op on every backend once, in isolation: an early part of ``make gpu-report``.

    python benchmarks/smoke.py --json smoke.json
    python benchmarks/smoke.py --device cpu --backend cpu

Workers take one backend after the other, call it on a small case, and check the result against the
numerics contract. If one is not done with a backend within ``--seconds``, it is killed and that
backend hangs; if one dies, the backend crashed; if a call failed, the worker ends, as its GPU
context may be lost. Each time another worker takes over. Workers are forked from this process,
which has imported all they need and touched no GPU (CUDA does not survive a fork); if they cannot
use the GPU, they are spawned instead. What hangs, crashes, fails or is wrong is listed in the
result as ``excluded``, in the form of ``LIVETALK_EXCLUDE``.
"""

import argparse
import importlib
import importlib.util
import math
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any, cast

import torch
from race import Budget, add_time_options, say

from livetalk_kernels.lines import brief
from livetalk_kernels.outputs import write_json
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import check_backend, relative_l2

SCHEMA = "livetalk/smoke/1"
OK, HANGS, CRASHES, FAILS, WRONG = "ok", "hangs", "crashes", "fails", "wrong"
LEFT_OUT, NO_TIME = "left out", "no time was left"
BROKEN = (HANGS, CRASHES, FAILS, WRONG)
SECONDS = 10.0  # per backend
LONGEST_WAIT = 60.0
MOST_WORKERS = 8
LEAST = 0.2  # seconds; with less nothing is started

Row = dict[str, Any]
Task = tuple[str, str]
"""Op and backend."""
Context = ForkContext | SpawnContext


def small_case(op: str, backend: str, device: torch.device) -> tuple[Case | None, str]:
    """Find the largest small case that a backend supports; or None, and why there is none."""
    spec = load_op(op)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    supports, reason = load_backend(op, backend).supports, "has no small case"
    cases = [case for case in spec.cases(device, dtype) if not case.large]
    for case in sorted(cases, key=lambda case: -spec.cost(case).bytes):
        refusal = supports(case)
        if refusal is None:
            return case, ""
        reason = refusal
    return None, reason


def attempt(op: str, backend: str, device: torch.device) -> Row:
    """Call a backend and judge its result; whatever it raises is its failure."""
    row: Row = {"op": op, "backend": backend, "case": "", "state": OK, "note": ""}
    row |= {"seconds": None, "error": None}
    try:
        case, reason = small_case(op, backend, device)
        if case is None:
            return row | {"state": LEFT_OUT, "note": reason}
        row["case"] = case.name
        spec, run = load_op(op), load_backend(op, backend).run
        positional, keywords = spec.make_inputs(case, torch.Generator().manual_seed(0))
        with torch.inference_mode():
            begin = time.perf_counter()
            outputs = run(*positional, **keywords)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            row["seconds"] = time.perf_counter() - begin
            plain = load_backend(op, "reference").run(*positional, **keywords)
            pairs = zip(spec.values(outputs), spec.values(plain), strict=True)
            row["error"] = max(relative_l2(*pair) for pair in pairs)
            right, verdict = check_backend(case, backend)
        return row if right else row | {"state": WRONG, "note": verdict}
    except Exception as error:  # a backend can fail in any way
        return row | {"state": FAILS, "note": brief(error)}


def work(pipe: Connection, name: str) -> None:
    """Run as a worker: report readiness, then answer tasks until one fails or none is left."""
    torch.set_num_threads(1)
    device = torch.device(name)
    try:
        torch.zeros(1, device=device).add_(1).item()
    except Exception as error:  # no worker can start
        pipe.send(brief(error))
        return
    pipe.send("")
    while (task := pipe.recv()) is not None:
        op, backend = task
        row = attempt(op, backend, device)
        pipe.send(row)
        if row["state"] == FAILS:
            return


@dataclass
class Worker:
    """A process, its end of the pipe, its task and deadline."""

    process: Any
    pipe: Connection
    until: float
    task: Task | None = None
    ready: bool = False

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.join(1)
        self.pipe.close()


class NoWorkerError(Exception):
    """Workers cannot use the device."""


@dataclass
class Smoke:
    """One run.

    Attributes:
        device: Name of the device.
        seconds: Seconds per backend.
        most: Maximum concurrent workers.
        budget: Time limit.
        write: Called with the rows after each.
        rows: Results so far.
    """

    device: str
    seconds: float
    most: int
    budget: Budget
    write: Callable[[list[Row]], None]
    rows: list[Row] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)

    def run(self, tasks: Iterable[Task], context: Context) -> None:
        """Try everything without a result; record what there is no time for.

        Raises:
            NoWorkerError: This kind of process cannot use the device.
        """
        known = {(row["op"], row["backend"]) for row in self.rows}
        left = deque(task for task in tasks if task not in known)
        try:
            while left or any(worker.task for worker in self.workers):
                if self.budget.left() < LEAST:
                    break
                busy = sum(worker.task is not None for worker in self.workers)
                while len(self.workers) < min(self.most, len(left) + busy):
                    self.start(context)
                for worker in self.workers:
                    if left and worker.ready and worker.task is None:
                        worker.task, worker.until = left.popleft(), time.monotonic() + self.seconds
                        worker.pipe.send(worker.task)
                self.listen()
        finally:
            for worker in self.workers:
                if worker.task is not None:
                    left.append(worker.task)
                worker.end()
            self.workers.clear()
        self.rows += [unmeasured(task, LEFT_OUT, NO_TIME) for task in left]

    def start(self, context: Context) -> None:
        """Start another worker."""
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self.device), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(Worker(process, ours, math.inf))  # its start may take all the time

    def listen(self) -> None:
        """Wait for messages, or for the next timeout."""
        waited = [worker for worker in self.workers if worker.task or not worker.ready]
        ends = [worker.until - time.monotonic() for worker in waited]
        limit = max(0.0, min(*ends, self.budget.left(), LONGEST_WAIT))
        news = set(wait([worker.pipe for worker in waited], limit))
        for worker in waited:
            if worker.pipe in news:
                self.receive(worker)
            elif time.monotonic() >= worker.until:
                self.lose(worker, HANGS, f"not done after {self.seconds:.0f} s")

    def receive(self, worker: Worker) -> None:
        """Handle a worker's message, or its death."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(LONGEST_WAIT)  # it is dead; collect its exit code
            code = worker.process.exitcode
            self.lose(worker, CRASHES, f"its process ended with code {code}")
            return
        if not worker.ready:
            if message:
                raise NoWorkerError(message)
            worker.ready = True
            return
        self.note(cast(Row, message))
        worker.task = None
        if message["state"] == FAILS:
            self.drop(worker)

    def lose(self, worker: Worker, state: str, note: str) -> None:
        """Record that a worker is gone because of its task.

        Raises:
            NoWorkerError: It had no task.
        """
        task = worker.task
        worker.task = None
        self.drop(worker)
        if task is None:
            raise NoWorkerError(f"a worker did not begin: {note}")
        self.note(unmeasured(task, state, note))

    def drop(self, worker: Worker) -> None:
        """End a worker; the next round starts another."""
        worker.end()
        self.workers.remove(worker)

    def note(self, row: Row) -> None:
        """Keep a row."""
        say(f"{row['op']} {row['backend']}: {row['state']} {row['note']}")
        self.rows.append(row)
        self.write(self.rows)


def unmeasured(task: Task, state: str, note: str) -> Row:
    """Build a row without measurements."""
    op, backend = task
    nothing = {"case": "", "seconds": None, "error": None}
    return {"op": op, "backend": backend, "state": state, "note": note, **nothing}


def excluded(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the value of ``LIVETALK_EXCLUDE``; without ``reference`` nothing at all would run."""
    return sorted(
        f"{row['op']}={row['backend']}"
        for row in rows
        if row["state"] in BROKEN and row["backend"] != "reference"
    )


def main() -> int:
    """Try, print, write.

    Returns:
        0, whatever backends do: that is the result; 1 if no worker could start.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backend", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="seconds per backend"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    add_time_options(parser)
    args = parser.parse_args()
    if importlib.util.find_spec("triton") is not None:
        importlib.import_module("triton")  # once for all workers
    tasks = [
        (op, name)
        for op in op_names()
        for name in backend_names(op)
        if not args.backend or name in args.backend
    ]
    most = max(1, min(MOST_WORKERS, (os.cpu_count() or 2) // 2))
    result: dict[str, Any] = {"schema": SCHEMA, "device": args.device, "problem": ""}
    order = {task: index for index, task in enumerate(tasks)}

    def write(rows: list[Row], *, complete: bool = False) -> None:
        rows = sorted(rows, key=lambda row: order[row["op"], row["backend"]])
        result.update(rows=rows, excluded=excluded(rows), complete=complete)
        if args.json:
            write_json(args.json, result)

    smoke = Smoke(args.device, args.seconds, most, Budget.of(args), write)
    for context in (multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")):
        try:
            smoke.run(tasks, context)
            result["problem"] = ""
            break
        except NoWorkerError as error:
            result["problem"] = f"by {context.get_start_method()}: {error}"
            say(result["problem"])
    late = any(row["note"] == NO_TIME for row in smoke.rows)
    write(smoke.rows, complete=not late and not result["problem"])
    print("excluded:", ", ".join(result["excluded"]) or "none")
    return 1 if result["problem"] else 0


if __name__ == "__main__":
    sys.exit(main())
