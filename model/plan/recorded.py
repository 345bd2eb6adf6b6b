"""livetalk's own reports as evidence: what a machine really achieved.

A ``livetalk profile`` report has times of stages and parts, to which constants are fitted; a
``livetalk bench`` file has what ops achieve; ``livetalk bench comm`` what links do. On a CPU, rates
are fitted, as here; on a GPU, fractions of the hardware's own figures (see `evidence`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import REPORT_BYTES, is_folder, read_json
from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_kernels.runtime.timed_comm import COMMUNICATION
from livetalk_kernels.spec import ATTENTION, CONVOLUTIONS, CROSS, LINEARS, NORMS

from ..config import PRESETS
from .fit import GOAL, NOISE, Prior, Vector, least_squares
from .forecast import Job, forecast
from .layout import Layout
from .machine import CpuMachine, CpuRates, Machine
from .systems import Schedule

SCHEMA = "livetalk/profile/1"
VERSIONED = ("livetalk/profile/", "livetalk/bench/", "livetalk/ops/")
BENCH_SCHEMAS = ("livetalk/bench/2", "livetalk/ops/1", "livetalk/ops/2")  # ops: benchmarks/ops_all
PROFILE, BENCH, COMM = "profile", "bench", "bench comm"
SETTING = ("model", "dtype", "precision", "reuse", "steps", "threads", "compiled")
FUSE_BIAS = "--fuse-bias"  # only a report's command line, which may be shortened, shows it
NAMED = 3  # settings that an error lists; there are as many as ops
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# Parts that reports distinguish like a forecast; the others count in their stage's total.
COMPARED = (LINEARS, ATTENTION, CROSS, NORMS, CONVOLUTIONS, COMMUNICATION)

# Start of a fit; every report outweighs it.
CPU_PRIORS: Mapping[str, Prior] = {
    "linears": Prior(value=1e11, spread=2.0, why="two cores"),
    "attention": Prior(value=5e10, spread=2.0, why="two cores"),
    "convolution": Prior(value=1e11, spread=2.0, why="two cores"),
    "bandwidth": Prior(value=1e10, spread=1.0, why="two cores"),
    "call": Prior(value=1e-5, spread=1.0, why="PyTorch's dispatch, and Python"),
    "audio": Prior(value=5e10, spread=2.0, why="two cores"),
}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One file.

    Attributes:
        path: Its path.
        kind: ``profile``, ``bench`` or ``bench comm``.
        values: Its contents.
    """

    path: Path
    kind: str
    values: Mapping[str, Any]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Access the values in a block; anything malformed becomes an error that names the file.

        Raises:
            UserError: Something is missing, of another type or out of range.
        """
        try:
            yield
        except UserError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"--fit {self.path}: the report lacks or garbles {error!s:.80}; record it again"
            ) from None

    @property
    def gpu_name(self) -> str | None:
        """The driver's name of its GPU; None if it ran on a CPU."""
        device = str(self.values["settings"].get("device", ""))
        gpu = self.values["machine"].get("gpu")
        with self.reading():
            return str(gpu["name"]) if gpu and device.startswith("cuda") else None


def read_recorded(paths: Sequence[str | Path]) -> list[Recorded]:
    """Read files, and all reports in folders.

    Raises:
        UserError: A named file is not a report, or a folder has none.
    """
    found: list[Recorded] = []
    for path in map(Path, paths):
        if not is_folder(path):
            found.append(_read(path))
            continue
        inside = []
        for file in sorted({*path.glob("*.json"), *path.glob("*/report.json")}):
            try:
                inside.append(_read(file))
            except UserError:  # a folder may contain other files too
                continue
        if not inside:
            raise UserError(f"--fit {path}: no report in this folder; name one of another")
        found += inside
    return found


def _read(path: Path) -> Recorded:
    try:
        values = read_json(path, "report", cure="name a report", limit=REPORT_BYTES)
    except UserError as error:
        raise UserError(f"--fit {error}") from None
    kind = None
    if values.get("schema") == SCHEMA:
        kind = PROFILE
    elif "cases" in values and values.get("schema") in BENCH_SCHEMAS:
        kind = BENCH
    elif "means" in values and "cases" in values and "schema" not in values:
        kind = BENCH  # the first version, which lacks nothing that a forecast needs
    elif str(values.get("schema")).startswith(VERSIONED):
        raise UserError(
            f"--fit {path}: is a report of another version of livetalk ({values['schema']:.40}); "
            "record it again with this one"
        )
    elif "link" in values and "patterns" in values:
        kind = COMM
    well_formed = all(isinstance(values.get(key), dict) for key in ("machine", "settings"))
    if kind is None or not well_formed or (kind == PROFILE and "summary" not in values):
        raise UserError(
            f"--fit {path}: is not a report of 'livetalk profile', 'livetalk bench --json' or "
            "benchmarks/ops_all.py; name one that is"
        )
    return Recorded(path=path, kind=kind, values=values)


def is_profile(path: Path) -> bool:
    """Return whether a file is a profile report."""
    try:
        return _read(path).kind == PROFILE
    except UserError:
        return False


# Contents of a profile report -------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A profile report, as something to predict.

    Attributes:
        path: Path of the report.
        job: What ran.
        layout: The ranks it ran on.
        times: (stage, part) -> seconds per chunk; part "" is the whole stage.
        chunk: Seconds per chunk, without stages that forecasts don't cover.
        setting: Hardware and settings except the size, by name.
        hardware: Description for display.
    """

    path: Path
    job: Job
    layout: Layout
    times: Mapping[tuple[str, str], float]
    chunk: float
    setting: Mapping[str, Any]
    hardware: str

    @classmethod
    def of(cls, recorded: Recorded) -> "Observed":
        """Read a report.

        Raises:
            UserError: Its model has no preset, or something is missing.
        """
        with recorded.reading():
            return cls._of(recorded.values, recorded.path)

    @classmethod
    def _of(cls, values: Mapping[str, Any], path: Path) -> "Observed":
        settings, machine, summary = values["settings"], values["machine"], values["summary"]
        preset = PRESETS.get(settings["model"])
        if preset is None:
            raise UserError(f"--fit {path}: model {settings['model']} is not a preset; profile one")
        height, width = settings["size"]
        fused = any(word.startswith(FUSE_BIAS[:4]) for word in values["command"])
        schedule = Schedule(fuse_bias=fused)
        if not settings["reuse"]:
            schedule = Schedule(once=False, fused_rope=False, overlap=False)
        job = Job.of(
            preset,
            (height, width),
            steps=settings["steps"],
            itemsize=ITEMSIZE[settings["dtype"]],
            fp8=settings["precision"] == "fp8",
            graphs=settings["cuda_graphs"],
            schedule=schedule,
        )
        ranks, threads = settings["ranks"], settings["threads"]
        layout = Layout(
            mesh=Mesh(ulysses=ranks["ulysses"], ring=ranks["ring"]),
            grid=Grid.parse(ranks["vae_grid"]),
        )
        times = {(row["stage"], row["part"]): float(row["p50"]) for row in summary["stages"]}
        known = forecast(job, layout, _any_machine()).stages
        if not all(0 <= seconds < math.inf for seconds in times.values()):
            raise ValueError("times")
        unknown = sum(s for (stage, part), s in times.items() if not part and stage not in known)
        chunk = float(summary["chunk"]["p50"]) - unknown
        if not 0 < chunk < math.inf:
            raise ValueError("the time of a chunk")
        setting = {"CPU": machine["cpu"]} | {key: settings.get(key) for key in SETTING}
        setting[FUSE_BIAS] = fused
        for model, backends in (settings.get("backends") or {}).items():
            setting |= {f"{model} {op}": backend for op, backend in backends.items()}
        return cls(
            path=path,
            job=job,
            layout=layout,
            times={key: seconds for key, seconds in times.items() if key[0] in known},
            chunk=chunk,
            setting=setting,
            hardware=f"{machine['cpu']}, {threads} thread{'s' * (threads != 1)}: "
            f"{settings['model']}, {settings['dtype']}, {settings['precision']}"
            + ("" if settings["reuse"] else ", published schedule"),
        )

    def ratios(self, machine: Machine) -> dict[str, tuple[float, float]]:
        """Return what is compared -> logarithm of predicted to observed, and its weight."""
        found = forecast(self.job, self.layout, machine)
        result = {"chunk": (math.log(found.chunk / self.chunk), 1.0)}
        for (stage, part), seconds in self.times.items():
            if part and part not in COMPARED:
                continue
            parts = found.stages.get(stage, {})  # on a GPU it may overlap the others
            predicted = sum(parts.values()) if not part else parts.get(part, 0.0)
            if seconds > 0 and predicted > 0:
                weight = math.sqrt(seconds / self.chunk)
                result[f"{stage} {part}"] = math.log(predicted / seconds), weight
        return result


def _any_machine() -> Machine:
    """Return a CPU, which has every stage, since nothing overlaps."""
    start = CpuRates(**{name: prior.value for name, prior in CPU_PRIORS.items()})
    return CpuMachine(rates=start)


Maker = Callable[[Mapping[str, float]], Machine]
"""Constants by name -> a machine with them."""


def fit_reports(
    reports: Sequence[tuple[Observed, Maker]], priors: Mapping[str, Prior]
) -> dict[str, float]:
    """Fit the constants that explain all reports best, each on its own machine."""
    names = list(priors)

    def residuals(point: Vector) -> Vector:
        values = dict(zip(names, np.exp(point).tolist(), strict=True))
        found = [
            ratio * weight / NOISE
            for report, machine in reports
            for ratio, weight in report.ratios(machine(values)).values()
        ]
        found += [
            (value - math.log(priors[name].value)) / priors[name].spread
            for name, value in zip(names, point, strict=True)
        ]
        return np.array(found)

    best = least_squares(residuals, np.log([priors[name].value for name in names]))
    return dict(zip(names, np.exp(best).tolist(), strict=True))


# A CPU ------------------------------------------------------------------------------------


def fit_cpu(reports: Sequence[Observed]) -> CpuMachine:
    """Fit the rates of the CPU that all these reports come from."""

    def machine(values: Mapping[str, float]) -> Machine:
        return CpuMachine(rates=CpuRates(**values))

    found = fit_reports([(report, machine) for report in reports], CPU_PRIORS)
    return CpuMachine(rates=CpuRates(**found))


def cpu_reports(recorded: Sequence[Recorded]) -> list[Observed]:
    """Select the profiles of a single rank on a CPU."""
    found = [
        Observed.of(entry) for entry in recorded if entry.kind == PROFILE and entry.gpu_name is None
    ]
    return [report for report in found if report.layout.world == 1]


def check_one_setting(reports: Sequence[Observed]) -> None:
    """Reject reports that no single set of rates can explain, grouped as in `leave_sizes_out`.

    Raises:
        UserError: Their settings differ; the message names them, with a report of each.
    """
    differing = []
    for key in dict.fromkeys(key for report in reports for key in report.setting):
        values: dict[str, Path] = {}
        for report in reports:
            values.setdefault(str(report.setting.get(key)), report.path)
        if len(values) > 1:
            listed = ", ".join(f"{value} ({short_name(path)})" for value, path in values.items())
            differing.append(f"{key}: {listed}")
    if differing:
        more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise UserError(
            f"--fit: reports of several settings: {'; '.join(differing[:NAMED])}{more}; "
            "name those of one"
        )


def short_name(path: Path) -> str:
    """Shorten to a report's file and folder; most are called ``report.json``."""
    return "/".join(path.parts[-2:])


@dataclass(frozen=True, kw_only=True)
class CpuCheck:
    """A size that was left out of the fit.

    Attributes:
        size: Height and width.
        observed: Seconds per chunk.
        predicted: The same, from a fit to the other sizes.
        stages: Stage -> (observed, predicted).
        hardware: Description for display.
        others: Sizes that it was fitted to.
    """

    size: tuple[int, int]
    observed: float
    predicted: float
    stages: Mapping[str, tuple[float, float]]
    hardware: str
    others: int

    @property
    def error(self) -> float:
        """Relative error."""
        return self.predicted / self.observed - 1

    @property
    def within(self) -> bool:
        """Whether the goal is met."""
        return abs(self.error) <= GOAL


def leave_sizes_out(reports: Sequence[Observed]) -> list[CpuCheck]:
    """Predict each size from a fit to the others of the same machine and settings."""
    checks = []
    for report in reports:
        alike = [other for other in reports if other.setting == report.setting]
        others = [other for other in alike if other.job.size != report.job.size]
        if not others:
            continue
        found = forecast(report.job, report.layout, fit_cpu(others))
        checks.append(
            CpuCheck(
                size=report.job.size,
                observed=report.chunk,
                predicted=found.chunk,
                stages={
                    stage: (seconds, found.stage(stage))
                    for (stage, part), seconds in report.times.items()
                    if not part
                },
                hardware=report.hardware,
                others=len({other.job.size for other in others}),
            )
        )
    return checks
