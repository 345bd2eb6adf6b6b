"""Shared by the benchmark scripts for steps and VAE: check, then time interleaved, in a budget.

Results are written after every stage, so that they survive whatever happens later.
"""

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetalk_kernels import UserError
from livetalk_kernels.bench.roofline import Roofline, from_samples, make_probes, start_probes
from livetalk_kernels.bench.timer import Sampler, Summary, interleave, ratio
from livetalk_kernels.lines import brief
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_text
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.testing.numerics import relative_l2
from livetalk_model.cli.common import parse_size

TIMED, RED, FAILED, LEFT_OUT = "timed", "red", "failed", "left out"
CHECKED = "checked"  # correct, but not timed
NO_TIME = "no time was left"
LEAST_ROUNDS = 3
BASES = 2  # number of baselines for later groups
FOREVER = 1e9  # seconds
BOUNDS: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Bound on the relative L2 between two exact ways to compute a whole model: fp32 by the contract,
bf16 by rounding that accumulates over 40 layers."""

Run = Callable[[], Tensor]


class Budget:
    """The time limit of a script."""

    def __init__(self, seconds: float | None = None, *, until: float | None = None) -> None:
        """Set the limit; None for unlimited time.

        Args:
            seconds: Seconds from now on.
            until: Deadline by ``time.monotonic``, which all processes of a machine share, so
                that start-up and imports count.
        """
        ends = [math.inf if until is None else until]
        self._end = min(ends if seconds is None else [*ends, time.monotonic() + seconds])

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Budget":
        """Read the options of `add_time_options`."""
        return cls(args.budget, until=args.until)

    def left(self) -> float:
        """Return the seconds left; negative once used up."""
        return self._end - time.monotonic()


class Output:
    """A result in progress, rewritten as it grows.

    Attributes:
        value: The result; modify it, then `write`.
    """

    def __init__(self, path: Path | None, **value: Any) -> None:
        """Record machine and command; without a path nothing is written."""
        self._path = path
        command = shlex.join(["python", *sys.argv])
        self.value: dict[str, Any] = {"machine": machine(), "command": command, **value}
        self.value["complete"] = False

    def write(self) -> None:
        """Replace the file."""
        if self._path is None:
            return
        write_text(self._path, json.dumps(self.value, indent=1) + "\n")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One way to compute something.

    Attributes:
        name: Display name.
        build: Creates the function to time.
        bound: Maximum relative L2 error against the truth to count as correct.
        about: Further data for the report.
        base: If positive, the group is compared with it, and if it is among the two with the
            highest number, so are later groups, with which it runs again.
        reason: Why it cannot run; None if it can.
        seconds: Minimum build time; with less time left it is not started.
    """

    name: str
    build: Callable[[], Run]
    bound: float
    about: Mapping[str, Any] = field(default_factory=dict)
    base: int = 0
    reason: str | None = None
    seconds: float = 0.0


class Race:
    """Groups of entrants, each interleaved with the baselines.

    Attributes:
        rows: One dictionary of plain values per entrant.
    """

    def __init__(
        self,
        truth: Tensor,
        device: torch.device,
        budget: Budget,
        output: Output,
        probes: "Probes | None" = None,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            truth: Expected result.
            device: Device to run on.
            budget: When to stop.
            output: Result, written after every step.
            probes: Probes measured in every round.
        """
        self.rows: list[dict[str, Any]] = []
        self._truth, self._device, self._budget, self._output = truth, device, budget, output
        self._probes = probes
        self._bases: dict[str, tuple[int, Run]] = {}
        self._once: dict[str, float] = {}  # seconds per call

    def group(self, entrants: Sequence[Entrant], *, rounds: int, share: float = 1.0) -> None:
        """Check each, then time all correct ones, interleaved with the baselines.

        Args:
            entrants: The entrants.
            rounds: Maximum; fewer if time is short, and none rather than fewer than 3.
            share: Fraction of the remaining time for the rounds; the minimum number of rounds may
                take more.
        """
        runs: dict[str, Run] = {}
        for entrant in entrants:
            row = {"name": entrant.name, "base": entrant.base > 0, **entrant.about}
            row |= {"state": LEFT_OUT, "note": ""}
            row |= {"error": None, "bound": entrant.bound, "seconds": None, "against": {}}
            self.rows.append(row)
            if entrant.reason is not None:
                row["note"] = entrant.reason
            elif self._budget.left() <= entrant.seconds:
                row["note"] = NO_TIME
            else:
                self._check(entrant, row, runs)
            self._output.write()
        if runs:
            self._time(runs, rounds, share)
        found = {e.name: (e.base, runs[e.name]) for e in entrants if e.base and e.name in runs}
        every = sorted((self._bases | found).items(), key=lambda item: -item[1][0])
        self._bases = dict(every[:BASES])
        self._output.write()

    @property
    def out_of_time(self) -> bool:
        """Whether something was skipped for lack of time."""
        return any(row["note"] == NO_TIME for row in self.rows)

    def _check(self, entrant: Entrant, row: dict[str, Any], runs: dict[str, Run]) -> None:
        say(f"checking {entrant.name}")
        try:
            run = entrant.build()
            row["error"] = error = relative_l2(run(), self._truth)
            self._once[entrant.name] = call_seconds(self._device, run)
        except Exception as problem:  # whatever it fails with, the others continue
            row |= {"state": FAILED, "note": brief(problem)}
            self._recover(row)
            return
        if error <= entrant.bound:  # NaN is not
            runs[entrant.name] = run
            row |= {"state": CHECKED, "note": NO_TIME}
        else:
            row |= {"state": RED, "note": f"differs by {error:.1e}, {entrant.bound:.0e} at most"}

    def _recover(self, row: Mapping[str, Any]) -> None:
        """Continue, unless the GPU's context is lost: then everything after would fail too."""
        if self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
        except RuntimeError as error:
            self._output.value["lost"] = f"{row['name']} broke the GPU's context: {brief(error)}"
            self._output.write()
            raise SystemExit(f"{self._output.value['lost']}; nothing after it was run") from None

    def _time(self, runs: dict[str, Run], rounds: int, share: float) -> None:
        entered = {name: run for name, (_, run) in self._bases.items()} | runs
        each = sum(self._once[name] for name in entered)
        left = max(0.0, min(self._budget.left(), FOREVER))
        least = min(rounds, LEAST_ROUNDS)
        if (least + 1) * each > left:  # one more is not counted
            return
        rounds = max(least, min(rounds, int(left * share / each) - 1))
        say(f"timing {', '.join(entered)}: {rounds} rounds, {each:.2g} s each")
        samplers: dict[str, Sampler] = {
            name: partial(call_seconds, self._device, run) for name, run in entered.items()
        }
        probes = self._probes.samplers if self._probes else {}
        samples = interleave(samplers | probes, rounds=rounds)
        for name in probes:
            assert self._probes is not None
            self._probes.samples.setdefault(name, []).extend(samples[name])
        for row in self._rows_of(runs):
            own = samples[row["name"]]
            row |= {"state": TIMED, "note": "", "seconds": asdict(Summary.of(own)), "samples": own}
        bases = [row["name"] for row in self._rows_of(entered) if row["base"]]
        for row in self._rows_of(entered):
            own = samples[row["name"]]
            against = {base: ratio(samples[base], own) for base in bases if base != row["name"]}
            row["against"] = against | row["against"]

    def _rows_of(self, runs: Mapping[str, Run]) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["name"] in runs]


class Probes:
    """Matrix products interleaved with a race: the machine's peak rates, by dtype.

    Attributes:
        samplers: Name -> function that takes a sample.
        samples: Name -> seconds so far.
    """

    def __init__(self, device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
        """Create and warm up the products."""
        self._made = {
            dtype: {"gemm": make_probes(device, dtype)["gemm"]} for dtype in dict.fromkeys(dtypes)
        }
        self.samplers = {
            _probe_name(dtype): start_probes(device, probes)["gemm"]
            for dtype, probes in self._made.items()
        }
        self.samples: dict[str, list[float]] = {}

    def rates(self) -> dict[torch.dtype, float]:
        """Return FLOP/s by dtype, as far as measured."""
        nothing = Roofline(bandwidth=1.0, rate=1.0)
        return {
            dtype: from_samples(probes, {"gemm": self.samples[_probe_name(dtype)]}, nothing).rate
            for dtype, probes in self._made.items()
            if self.samples.get(_probe_name(dtype))
        }


def _probe_name(dtype: torch.dtype) -> str:
    return f"probe {dtype_name(dtype)}"


def call_seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Time one call on an idle device, including launches."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def say(text: str) -> None:
    """Print progress for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def new_parser(doc: str | None, *, model: bool = True) -> argparse.ArgumentParser:
    """Create a parser with the options common to these scripts.

    Args:
        doc: The script's docstring, which is its help.
        model: Include those that choose a model and its backends.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if model:
        parser.add_argument("--preset", default="14b", help="14b (default), small, mid or tiny")
        parser.add_argument("--size", type=parse_size, metavar="HxW", help="default: the preset's")
        parser.add_argument(
            "--backend", action="append", default=[], metavar="[OP=]NAME", help="for our ways, not "
            "the published one; may be repeated",
        )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result")
    add_time_options(parser)
    return parser


def add_time_options(parser: argparse.ArgumentParser) -> None:
    """Add options about a script's time."""
    parser.add_argument(
        "--budget", type=float, metavar="S", help="skip what does not fit in this many seconds"
    )
    parser.add_argument(
        "--until", type=float, metavar="T", help="deadline by time.monotonic, the clock since "
        "the machine's start, so that imports count",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Resolve device and dtype; set the number of threads.

    Raises:
        UserError: There is no such device.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {args.device}: torch sees no GPU; use --device cpu")
        index = torch.cuda.current_device() if device.index is None else device.index
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    name = args.dtype
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    return device, {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


HEADING = f"{'':44s} {'ms':>9s} {'TFLOP/s':>8s} {'floor %':>8s} {'error':>8s}  speed-up"
"""Above the lines of `row_line`."""


def row_line(name: str, row: Mapping[str, Any]) -> str:
    """Format a row under a name."""
    if row["state"] != TIMED:
        return f"{name:44s} {row['state']}: {row['note']}"
    against = ", ".join(f"{value:.2f}x {base}" for base, value in row["against"].items())
    name += " (approximate)" * row.get("approximate", False)
    return (
        f"{name:44s} {row['seconds']['p50'] * 1e3:9.2f} {row['tflop_per_s']:8.3g} "
        f"{row['of_floor'] * 100:8.1f} {row['error']:8.1e}  {against}"
    )


def exit_code(rows: Iterable[Mapping[str, Any]]) -> int:
    """Return 1 if results are wrong, something failed, or nothing was timed; else 0."""
    states = [row["state"] for row in rows]
    return 1 if RED in states or FAILED in states or TIMED not in states else 0


def run_main(main: Callable[[], int]) -> None:
    """Run a script's ``main`` and exit with its code; user errors are one line."""
    try:
        code = main()
    except UserError as error:
        say(f"error: {error}")
        code = 2
    sys.exit(code)
