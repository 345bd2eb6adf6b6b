"""Compares with a saved run of these suites: what has become slower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from livetalk_kernels.bench.compare import ALARM, MIN_SAMPLES, Change, unpaired
from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import REPORT_BYTES, read_json
from livetalk_kernels.units import ms, percent_change

HARDWARE = ("cpu", "cores", "cpu_quota", "memory_bytes", "threads", "gpu")  # affect times
GPU = ("name", "count")  # of a GPU; its clock and temperature vary


@dataclass(frozen=True, kw_only=True)
class Run:
    """One benchmark's samples.

    Attributes:
        name: File and test.
        seconds: One per round.
        probe: Seconds of the probe before each round.
    """

    name: str
    seconds: tuple[float, ...]
    probe: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark compared with the baseline.

    Attributes:
        name: File and test.
        before: The baseline's median, seconds; None if it lacks the benchmark.
        now: The present median.
        change: Change of the times.
        relative: Change of the times in units of the probe's.
    """

    name: str
    before: float | None
    now: float
    change: Change | None = None
    relative: Change | None = None

    @property
    def verdict(self) -> str:
        """``slower`` or ``faster`` if both agree; else ``no change``, or ``new``."""
        if self.change is None or self.relative is None:
            return "new"
        if self.change.verdict == self.relative.verdict:
            return self.change.verdict
        return "no change"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A file written by ``--benchmark-json``.

    Attributes:
        path: The file.
        runs: Name -> samples.
        settings: What ran.
        machine: The machine it ran on.
        remarks: What a reader of the comparison should know.
    """

    path: Path
    runs: Mapping[str, Run]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Baseline":
        """Read a file.

        Raises:
            UserError: It is missing, or was not written by these suites.
        """
        write = "write one with 'pytest benchmarks/e2e --benchmark-json FILE'"
        try:
            entries = read_json(path, "baseline", cure=write, limit=REPORT_BYTES)["benchmarks"]
            runs = {}
            for entry in entries:
                name, info = entry["fullname"].rpartition("/")[2], entry["extra_info"]
                runs[name] = Run(
                    name=name,
                    seconds=tuple(map(float, entry["stats"]["data"])),
                    probe=tuple(map(float, info["probe"])),
                )
            facts = {name: entries[0]["extra_info"][name] for name in ("settings", "machine")}
        except UserError as error:
            raise UserError(f"--baseline {error}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise UserError(
                f"--baseline {path}: was not written by these suites; {write}"
            ) from None
        for run in runs.values():
            samples = np.array([*run.seconds, *run.probe])
            few = min(len(run.seconds), len(run.probe)) < MIN_SAMPLES
            if few or len(run.seconds) != len(run.probe) or not (samples > 0).all():
                raise UserError(
                    f"--baseline {path}: {run.name} has no {MIN_SAMPLES} samples with their "
                    "probes; write another one"
                )
        return cls(path=path, runs=runs, **facts)

    def require(
        self, settings: Mapping[str, Any], machine: Mapping[str, Any], *, any_machine: bool
    ) -> None:
        """Check that what runs now can be compared.

        Raises:
            UserError: Something else was measured; or on other hardware, if that is not allowed.
        """
        if dict(self.settings) != dict(settings):
            raise UserError(
                f"--baseline {self.path}: is of {_words(self.settings)}, this session of "
                f"{_words(settings)}; compare like with like"
            )
        before, now = (hardware(facts) for facts in (self.machine, machine))
        if before == now:
            return
        differ = ", ".join(
            f"{name} {before[name]} there and {now[name]} here"
            for name in HARDWARE
            if before[name] != now[name]
        )
        if not any_machine:
            raise UserError(
                f"--baseline {self.path}: is of another machine: {differ}; save a baseline here, "
                "or compare all the same with --baseline-any-machine"
            )
        self.remarks.append(f"ANOTHER MACHINE: {differ}")

    def compare(self, runs: Sequence[Run], tolerance: float) -> list[Comparison]:
        """Hold what was timed now against the baseline.

        Args:
            runs: What was timed now.
            tolerance: Change that is not called one.
        """
        found = []
        for run in runs:
            now, base = float(np.median(run.seconds)), self.runs.get(run.name)
            if base is None:
                found.append(Comparison(name=run.name, before=None, now=now))
                continue
            compare = partial(unpaired, alarm=ALARM / len(runs), tolerance=tolerance)
            own, then = (np.divide(x.seconds, x.probe) for x in (run, base))
            found.append(
                Comparison(
                    name=run.name,
                    before=float(np.median(base.seconds)),
                    now=now,
                    change=compare(base.seconds, run.seconds),
                    relative=compare(then, own),
                )
            )
        return found


def hardware(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Of a machine's facts those that times depend on."""
    found = {name: machine.get(name) for name in HARDWARE}
    if isinstance(found["gpu"], dict):
        found["gpu"] = " x ".join(str(found["gpu"].get(name)) for name in GPU)
    return found


def sentence(entry: Comparison) -> str:
    """Format a benchmark in one line."""
    if entry.change is None or entry.relative is None or entry.before is None:
        return f"{entry.name}: {ms(entry.now)}, not in the baseline"
    head = "REGRESSION " if entry.verdict == "slower" else ""
    return (
        f"{head}{entry.name}: {entry.verdict}, {ms(entry.before)} -> {ms(entry.now)}: "
        f"{_interval(entry.change)}, relative to the probe {_interval(entry.relative)}"
    )


def _interval(change: Change) -> str:
    """Format a change with its interval: ``+9.8 % (+7.1 to +12.6)``."""
    ends = f"{percent_change(change.low)} to {percent_change(change.high)}"
    return f"{percent_change(change.ratio)} % ({ends})"


def _words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in settings.items())
