"""Results of a benchmark: rates, fractions and ratios, for tables, CSV and JSON."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..precision import dtype_name
from ..spec import Case, Cost
from .baseline import COMPILE, EAGER
from .clocks import Clocks
from .roofline import Roofline
from .score import Standing, geometric_mean
from .timer import Summary, ratio

SCHEMA = "livetalk/bench/2"  # of the file; version 1 had no name, trials or score
TIMED, RED, LEFT_OUT = "timed", "red", "left out"
AUTO_SLACK = 1.05  # auto's pick may take this many times as long as the fastest backend


@dataclass(frozen=True, kw_only=True)
class Row:
    """One backend on one case.

    Attributes:
        backend: Its name; ``eager`` and ``compile`` are the reference.
        state: ``timed``; ``red``: its results are wrong; or ``left out``.
        note: The errors of its results, or why it was left out.
        auto: Whether ``auto`` picks it.
        approximate: Whether its results are approximate; then it must be named to be used.
        timing: How it was timed: by the ``clock`` (CPU), by CUDA ``graphs``, excluding launches, or
            by ``launches``, including them. Empty if not timed.
        setup: Seconds of one-time work: packing a weight, compiling, the first call.
        kernels: Seconds of a call's kernels alone, by CUPTI; None if unavailable.
        trials: Median seconds of each trial.
        time: The samples of all trials; None if not timed.
        vs_eager: Speedup over eager; median of the rounds' ratios.
        vs_compile: Speedup over torch.compile.
    """

    backend: str
    state: str
    note: str
    auto: bool = False
    approximate: bool = False
    timing: str = ""
    setup: float | None = None
    kernels: float | None = None
    trials: tuple[float, ...] = ()
    time: Summary | None = None
    vs_eager: float | None = None
    vs_compile: float | None = None

    @property
    def trial_spread(self) -> float | None:
        """Difference between the fastest and the slowest trial, relative to their median."""
        if len(self.trials) < 2:
            return None
        return (max(self.trials) - min(self.trials)) / float(np.median(self.trials))


@dataclass(frozen=True, kw_only=True)
class Result:
    """All backends on one case.

    Attributes:
        case: The case.
        cost: Its least work.
        roofline: The limits measured in the same rounds.
        copies: Copies of the inputs that calls alternated between (CPU).
        clocks: The GPU before the first and after the last round; None on a CPU.
        rows: The backends.
        standing: Our fastest kernel against the fastest rival; None if either is missing.
    """

    case: Case
    cost: Cost
    roofline: Roofline
    copies: int | None
    clocks: tuple[Clocks | None, Clocks | None]
    rows: tuple[Row, ...]
    standing: Standing | None = None

    @property
    def name(self) -> str:
        """Op and case, for display."""
        return f"{self.case.op} {self.case.name}"

    @property
    def floor(self) -> float:
        """Least possible seconds."""
        return self.roofline.floor(self.cost)

    @property
    def faster_than_auto(self) -> tuple[str, float] | None:
        """The backend that auto should have picked, and how many times faster it is.

        None if no exact backend is more than 5 % faster, or auto's pick was not timed.
        """
        p50 = {
            row.backend: row.time.p50
            for row in self.rows
            if row.time is not None and not row.approximate and row.backend != COMPILE
        }
        picked = next((row.backend for row in self.rows if row.auto), None)
        if picked not in p50:
            return None
        best = min(p50, key=p50.__getitem__)
        ratio_of_medians = p50[picked] / p50[best]
        return (best, ratio_of_medians) if ratio_of_medians > AUTO_SLACK else None

    def rates(self, row: Row) -> dict[str, float | None]:
        """Compute GB/s, TFLOP/s and the fraction of the floor of a row; None if not timed."""
        if row.time is None:
            return {"gb_per_s": None, "tflop_per_s": None, "of_floor": None}
        return {
            "gb_per_s": self.cost.bytes / row.time.p50 / 1e9,
            "tflop_per_s": self.cost.flops / row.time.p50 / 1e12,
            "of_floor": self.floor / row.time.p50,
        }

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values; times in seconds."""
        case = self.case
        return {
            "op": case.op,
            "case": case.name,
            "dims": dict(case.dims),
            "options": dict(case.options),
            "device": str(case.device),
            "dtype": dtype_name(case.dtype),
            **dataclasses.asdict(self.cost),
            "bandwidth": self.roofline.bandwidth,
            "rate": self.roofline.rate,
            "floor": self.floor,
            "bound": self.roofline.bound(self.cost),
            "copies": self.copies,
            "clocks": [clocks and clocks.as_json() for clocks in self.clocks],
            "standing": self.standing and dataclasses.asdict(self.standing),
            "faster_than_auto": self.faster_than_auto,
            "backends": [self._row_as_json(row) for row in self.rows],
        }

    def _row_as_json(self, row: Row) -> dict[str, Any]:
        entry = dataclasses.asdict(row) | self.rates(row)
        if row.time is not None:
            entry["time"]["spread"] = row.time.spread
            entry["trial_spread"] = row.trial_spread
        return entry


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One backend over several cases.

    Attributes:
        backend: Its name.
        cases: Number of cases in which it was timed along with the baselines.
        vs_eager: Geometric mean of the cases' ratios.
        vs_compile: The same; None without torch.compile.
        least_vs_compile: The smallest of these ratios, and its case.
    """

    backend: str
    cases: int
    vs_eager: float
    vs_compile: float | None
    least_vs_compile: tuple[float, str] | None


def auto_verdict(results: Iterable[Result]) -> str:
    """Say in how many cases auto picks the fastest backend, within 5 %, and name the others."""
    found = [result for result in results if any(row.auto and row.time for row in result.rows)]
    if not found:
        return ""
    losses = [
        f"{result.name}: {loss[0]} {loss[1]:.2f} x faster"
        for result in found
        if (loss := result.faster_than_auto)
    ]
    cases = f"{len(found) - len(losses)} of {len(found)} case{'s' if len(found) > 1 else ''}"
    text = f"auto picks the fastest backend, within 5 %, in {cases}"
    return f"{text}; not in {'; '.join(losses)}" if losses else text


def geometric_means(results: Iterable[Result]) -> list[Mean]:
    """Compute one mean per backend that was timed on two cases or more."""
    found: dict[str, list[tuple[Row, Case]]] = {}
    for result in results:
        for row in result.rows:
            if row.vs_eager is not None and row.backend not in (EAGER, COMPILE):
                found.setdefault(row.backend, []).append((row, result.case))
    means = []
    for backend, rows in found.items():
        if len(rows) < 2:
            continue
        compiled = [
            (row.vs_compile, f"{case.op} {case.name}")
            for row, case in rows
            if row.vs_compile is not None
        ]
        means.append(
            Mean(
                backend=backend,
                cases=len(rows),
                vs_eager=geometric_mean([row.vs_eager or 0.0 for row, _ in rows]),
                vs_compile=geometric_mean([value for value, _ in compiled]) if compiled else None,
                least_vs_compile=min(compiled, default=None),
            )
        )
    return means


def compare(
    rows: Sequence[Row], trials: Sequence[Mapping[str, Sequence[float]]]
) -> tuple[Row, ...]:
    """Add times and ratios to each row that was sampled.

    Args:
        rows: The rows.
        trials: For each trial, backend -> seconds, one per round.
    """
    samples = joined(trials)

    def against(base: str, own: str) -> float | None:
        return ratio(samples[base], samples[own]) if base in samples else None

    return tuple(
        dataclasses.replace(
            row,
            time=Summary.of(samples[row.backend]),
            trials=tuple(float(np.median(trial[row.backend])) for trial in trials),
            vs_eager=against(EAGER, row.backend),
            vs_compile=against(COMPILE, row.backend),
        )
        if row.backend in samples
        else row
        for row in rows
    )


def joined(trials: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Concatenate the samples of all trials by name."""
    return {name: [x for trial in trials for x in trial[name]] for name in trials[0]}


def as_csv(results: Iterable[Result]) -> str:
    """Format one line per backend and case; times in microseconds."""
    lines = [_csv_line(result, row) for result in results for row in result.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(_CSV_COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


_CSV_COLUMNS = (
    "op", "case", "dims", "device", "dtype", "backend", "auto", "state", "timing", "rounds",
    "p20_us", "p50_us", "p80_us", "spread", "trial_spread", "setup_s", "kernels_us", "gb_per_s",
    "tflop_per_s", "of_floor", "vs_eager", "vs_compile", "note",
)  # fmt: skip


def _csv_line(result: Result, row: Row) -> dict[str, Any]:
    case = result.case
    line = {
        "op": case.op,
        "case": case.name,
        "dims": " ".join(f"{letter}={size}" for letter, size in case.dims.items()),
        "device": str(case.device),
        "dtype": dtype_name(case.dtype),
        "backend": row.backend,
        "auto": int(row.auto),
        "state": row.state,
        **result.rates(row),
        "vs_eager": row.vs_eager,
        "vs_compile": row.vs_compile,
        "note": row.note,
    }
    if row.time is not None:
        line |= {"rounds": row.time.count, "spread": row.time.spread, "timing": row.timing}
        line |= {"trial_spread": row.trial_spread, "setup_s": row.setup}
        line["kernels_us"] = None if row.kernels is None else row.kernels * 1e6
        line |= {f"{p}_us": getattr(row.time, p) * 1e6 for p in ("p20", "p50", "p80")}
    return {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
