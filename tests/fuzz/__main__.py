"""Spoil good files and hold every loader to its word: what it cannot read is a UserError.

python -m fuzz                                   20,000 mutations: minutes
python -m fuzz --seconds 10                      as many as fit, every loader alike
python -m fuzz --only sound --first 17 --mutations 1     one of them again

Run it in ``tests``, or by ``make fuzz``. Mutation number n of a loader is the same in every run
with the same seed. A loader fails when it raises anything but the product's own errors, takes more
than `CASE_SECONDS` of CPU time, or more than `EXTRA_MEMORY`.
"""

import argparse
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from livetalk_kernels.errors import NumericsError, UserError

from .loaders import Loader, loaders
from .mutations import mutate

MUTATIONS = 20_000
CASE_SECONDS = 5.0  # of CPU time, so that a busy machine fails nothing
EXTRA_MEMORY = 1 << 30  # bytes of address space on top of what the process has when it starts
FOUND = 3  # failures of a loader that are shown


class TooLongError(BaseException):
    """A loader took too much CPU time; no handler of ``Exception`` swallows it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done with every loader.

    Attributes:
        seed: Of all mutations.
        first: Number of the first mutation.
        mutations: How many.
        seconds: Wall time of one loader, at most.
        folder: Where the files go; a file that fails stays there.
    """

    seed: int
    first: int
    mutations: int
    seconds: float
    folder: Path


def run(name: str, loader: Loader, job: Job) -> tuple[int, list[str]]:
    """Feed a loader; return how many mutations were tried, and a line for each that failed."""
    folder = job.folder / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(loader.seeds)
    for seed_name in names:  # good files are read, or nothing is tested
        path = folder / seed_name
        path.write_bytes(loader.seeds[seed_name])
        loader.read(path)
    end = time.monotonic() + job.seconds
    failures: list[str] = []
    number = job.first
    while number < job.first + job.mutations and time.monotonic() < end and len(failures) < FOUND:
        rng = random.Random(f"{job.seed}/{name}/{number}")
        path = folder / rng.choice(names)
        path.write_bytes(mutate(loader.seeds[path.name], rng, is_json=loader.is_json))
        problem = attempt(loader, path)
        if problem:
            kept = path.with_name(f"{number}-{path.name}")
            path.replace(kept)
            failures.append(f"{name} {number} ({kept}): {problem}")
        number += 1
    return number - job.first, failures


def attempt(loader: Loader, path: Path) -> str | None:
    """Read one file; return what is wrong with how the loader handled it."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        loader.read(path)
    except (UserError, NumericsError):
        return None
    except BaseException:  # whatever it is, it is not one of ours
        return traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError(f"more than {CASE_SECONDS} s of CPU time")


def run_apart(name: str, loader: Loader, job: Job) -> int:
    """Fork a process that runs one loader within bounded memory; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, -1))
        sys.setrecursionlimit(1000)
        warnings.simplefilter("ignore")
        logging.disable()
        tried, failures = run(name, loader, job)
        lines = [f"{name}: {tried} mutations, {len(failures)} failed", *failures]
        os.write(1, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        code = 1 if failures or not tried else 0
    except BaseException:
        os.write(1, f"{name}: {traceback.format_exc()}\n".encode("utf-8", "backslashreplace"))
    os._exit(code)


def main() -> int:
    """Run all loaders, as many at a time as there are cores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", help="name of a loader; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--mutations", type=int, help=f"in all (default: {MUTATIONS})")
    parser.add_argument("--seconds", type=float, help="wall time in all, in addition to mutations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {
        name: loader for name, loader in loaders().items() if not args.only or name in args.only
    }
    cores = len(os.sched_getaffinity(0))
    total = args.mutations or MUTATIONS
    job = Job(
        seed=args.seed,
        first=args.first,
        mutations=-(-total // len(chosen)),
        seconds=args.seconds * cores / len(chosen) if args.seconds else float("inf"),
        folder=Path(tempfile.mkdtemp(prefix="fuzz")),
    )
    waiting, running, failed = list(chosen), {}, []
    while waiting or running:
        while waiting and len(running) < cores:
            name = waiting.pop(0)
            running[run_apart(name, chosen[name], job)] = name
        pid, status = os.wait()
        name = running.pop(pid)
        if status:
            failed.append(name)
            if os.WIFSIGNALED(status):
                print(f"{name}: killed by signal {os.WTERMSIG(status)}", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}; the files are in {job.folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
