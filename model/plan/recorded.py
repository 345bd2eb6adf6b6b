"""Reports that livetalk has written, as evidence: what a machine really reached.

A ``livetalk profile`` report gives times of stages and parts, which constants are fitted to; a
``livetalk bench`` file gives what ops reach; ``livetalk bench comm`` what links do. On a CPU,
rates are fitted; on a GPU, shares of the hardware's own figures, so that they carry over to others.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Grid, Mesh

from ..config import PRESETS, read_json
from .dit_work import Schedule
from .fit import GOAL, NOISE, Prior, Vector, least_squares
from .forecast import Job, forecast
from .hardware import ASSUMED, BEST, HERE, Gpu, Quantity, find_gpu
from .layout import Layout
from .machine import CpuMachine, CpuRates, GpuMachine, Machine, Shares, attention_share
from .work import ATTENTION as ATTENTION_PART
from .work import COMMUNICATION, CONVOLUTIONS, CROSS, LINEARS, NORMS, Attention

SCHEMA = "livetalk/profile/1"
PROFILE, BENCH, COMM = "profile", "bench", "bench comm"
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
# Parts that reports tell apart as a forecast does; the others count in their stage's sum.
COMPARED = (LINEARS, ATTENTION_PART, CROSS, NORMS, CONVOLUTIONS, COMMUNICATION)
LARGE_BYTES, LARGE_FLOPS = 1e8, 1e11  # of a call that says something about a GPU

# Start of a fit; every report outvotes it.
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
        path: Where it is.
        kind: ``profile``, ``bench`` or ``bench comm``.
        values: What it holds.
    """

    path: Path
    kind: str
    values: Mapping[str, Any]

    @property
    def gpu_name(self) -> str | None:
        """The driver's name of its GPU; None if it ran on a CPU."""
        device = str(self.values["settings"].get("device", ""))
        gpu = self.values["machine"].get("gpu")
        return gpu["name"] if gpu and device.startswith("cuda") else None


def read_recorded(paths: Sequence[str | Path]) -> list[Recorded]:
    """Read files, and all reports in folders.

    Raises:
        UserError: A file that was named is no report, or a folder has none.
    """
    found: list[Recorded] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(_read(path))
            continue
        inside = []
        for file in sorted({*path.glob("*.json"), *path.glob("*/report.json")}):
            try:
                inside.append(_read(file))
            except UserError:  # a folder may hold other files too
                continue
        if not inside:
            raise UserError(f"--fit {path}: no report in this folder; name one of another")
        found += inside
    return found


def _read(path: Path) -> Recorded:
    try:
        values = read_json(path)
    except UserError as error:
        message = str(error).replace("download the file again", "name a report")
        raise UserError(f"--fit {message}") from None
    kind = None
    if values.get("schema") == SCHEMA:
        kind = PROFILE
    elif "cases" in values and "means" in values:
        kind = BENCH
    elif "link" in values and "patterns" in values:
        kind = COMM
    well_formed = all(isinstance(values.get(key), dict) for key in ("machine", "settings"))
    if kind is None or not well_formed or (kind == PROFILE and "summary" not in values):
        raise UserError(
            f"--fit {path}: is no report of 'livetalk profile' or 'livetalk bench --json'; "
            "name one that is"
        )
    return Recorded(path=path, kind=kind, values=values)


def is_profile(path: Path) -> bool:
    """Whether a file is a profile report."""
    try:
        return _read(path).kind == PROFILE
    except UserError:
        return False


# What a profile report says ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A profile report, as something to predict.

    Attributes:
        path: Of the report.
        job: What ran.
        layout: On which ranks.
        times: (stage, part) -> seconds a chunk; part "" is the whole stage.
        chunk: Seconds of a chunk, without stages that no forecast knows.
        setting: Hardware and settings but for the size.
        hardware: For people.
    """

    path: Path
    job: Job
    layout: Layout
    times: Mapping[tuple[str, str], float]
    chunk: float
    setting: tuple[Any, ...]
    hardware: str

    @classmethod
    def of(cls, recorded: Recorded) -> "Observed":
        """Read a report.

        Raises:
            UserError: It is of a model without a preset, or lacks something.
        """
        values, path = recorded.values, recorded.path
        try:
            return cls._of(values, path)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"--fit {path}: the report lacks or garbles {error}; record it again with "
                "'livetalk profile'"
            ) from None

    @classmethod
    def _of(cls, values: Mapping[str, Any], path: Path) -> "Observed":
        settings, machine, summary = values["settings"], values["machine"], values["summary"]
        preset = PRESETS.get(settings["model"])
        if preset is None:
            raise UserError(f"--fit {path}: model {settings['model']} is no preset; profile one")
        height, width = settings["size"]
        schedule = Schedule()
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
        unknown = sum(s for (stage, part), s in times.items() if not part and stage not in known)
        keys = ("model", "dtype", "precision", "reuse", "steps", "threads", "backends", "compiled")
        setting = [json.dumps(settings.get(key), sort_keys=True) for key in keys]
        return cls(
            path=path,
            job=job,
            layout=layout,
            times={key: seconds for key, seconds in times.items() if key[0] in known},
            chunk=float(summary["chunk"]["p50"]) - unknown,
            setting=(machine["cpu"], *setting),
            hardware=f"{machine['cpu']}, {threads} thread{'s' * (threads != 1)}: "
            f"{settings['model']}, {settings['dtype']}, {settings['precision']}"
            + ("" if settings["reuse"] else ", published schedule"),
        )

    def ratios(self, machine: Machine) -> dict[str, tuple[float, float]]:
        """What is compared -> logarithm of predicted to observed, and its weight."""
        found = forecast(self.job, self.layout, machine)
        result = {"chunk": (math.log(found.chunk / self.chunk), 1.0)}
        for (stage, part), seconds in self.times.items():
            if part and part not in COMPARED:
                continue
            parts = found.stages.get(stage, {})  # on a GPU it may run beside the others
            predicted = sum(parts.values()) if not part else parts.get(part, 0.0)
            if seconds > 0 and predicted > 0:
                weight = math.sqrt(seconds / self.chunk)
                result[f"{stage} {part}"] = math.log(predicted / seconds), weight
        return result


def _any_machine() -> Machine:
    """A CPU, on which nothing runs beside: it has every stage that there is."""
    start = CpuRates(**{name: prior.value for name, prior in CPU_PRIORS.items()})
    return CpuMachine(rates=start)


def _fit(
    reports: Sequence[Observed],
    priors: Mapping[str, Prior],
    machine: Callable[[Mapping[str, float]], Machine],
) -> dict[str, float]:
    names = list(priors)

    def residuals(point: Vector) -> Vector:
        made = machine(dict(zip(names, np.exp(point).tolist(), strict=True)))
        found = [
            ratio * weight / NOISE
            for report in reports
            for ratio, weight in report.ratios(made).values()
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
    """Rates of the CPU that all these reports are of."""

    def machine(values: Mapping[str, float]) -> Machine:
        return CpuMachine(rates=CpuRates(**values))

    return CpuMachine(rates=CpuRates(**_fit(reports, CPU_PRIORS, machine)))


def cpu_reports(recorded: Sequence[Recorded]) -> list[Observed]:
    """Profiles of one rank on a CPU."""
    found = [
        Observed.of(entry) for entry in recorded if entry.kind == PROFILE and entry.gpu_name is None
    ]
    return [report for report in found if report.layout.world == 1]


@dataclass(frozen=True, kw_only=True)
class CpuCheck:
    """A size that was left out of the fit.

    Attributes:
        size: Height and width.
        observed: Seconds of a chunk.
        predicted: The same by a fit to the other sizes.
        stages: Stage -> (observed, predicted).
        hardware: For people.
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
        """Relative."""
        return self.predicted / self.observed - 1

    @property
    def within(self) -> bool:
        """Whether the goal is met."""
        return abs(self.error) <= GOAL


def leave_sizes_out(reports: Sequence[Observed]) -> list[CpuCheck]:
    """Predict each size by a fit to the others of the same machine and settings."""
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


# A GPU ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What files say of GPUs.

    Attributes:
        shares: Fitted or measured; the others are as without files.
        measured: Names of the shares that files determine -> the files.
        figures: Figures of the hardware that were measured instead.
    """

    shares: Shares
    measured: Mapping[str, str]
    figures: Mapping[str, Quantity]


def gpu_evidence(recorded: Sequence[Recorded], gpu: Gpu, start: Shares) -> Evidence:
    """Shares and rates from files of this GPU, or of another, whose shares are carried over.

    Raises:
        UserError: A file is of a CPU, or of a GPU that is not in the table.
    """
    shares, measured = start.as_dict(), dict[str, str]()
    figures: dict[str, Quantity] = {}
    for entry in recorded:
        name = entry.gpu_name
        other = find_gpu(name) if name else None
        if other is None:
            raise UserError(
                f"--fit {entry.path}: was measured on {name or 'a CPU'}; for --gpu {gpu.name} name "
                "reports of a GPU that the table has"
            )
        where = f"{entry.path.name} ({other.title})"
        if entry.kind == PROFILE:
            found = _profiled(Observed.of(entry), other, Shares(**shares))
        elif entry.kind == COMM:
            found = _linked(entry.values, other)
        else:
            found = _benched(entry.values, other)
            for key, share in _limits(entry.values, other).items():
                own: Quantity | None = getattr(gpu, key)
                if own is not None:
                    figures[key] = Quantity(value=own.value * share, source=where, kind=HERE)
        shares.update(found)
        measured.update(dict.fromkeys(found, where))
    return Evidence(shares=Shares(**shares), measured=measured, figures=figures)


def _profiled(report: Observed, gpu: Gpu, start: Shares) -> dict[str, float]:
    priors = {
        name: Prior(value=value, spread=1.0, why="published figures")
        for name, value in start.as_dict().items()
        if name != "link" or report.layout.world > 1
    }

    def machine(values: Mapping[str, float]) -> Machine:
        return GpuMachine(gpu=gpu, shares=replace(start, **values))

    return _fit([report], priors, machine)


def _best(case: Mapping[str, Any]) -> float | None:
    """Seconds of the fastest exact backend; None where none was timed."""
    times = [
        row["time"]["p50"]
        for row in case["backends"]
        if row.get("time") and not row.get("approximate")
    ]
    return min(times, default=None)


def _benched(values: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """Shares of attention, convolution and memory that large cases reach."""
    reached: dict[str, list[float]] = {"attention": [], "convolution": [], "memory": []}
    for case in values["cases"]:
        seconds = _best(case)
        if seconds is None or case["dtype"] != "bfloat16":
            continue
        if case["op"] == "chunk_attention" and case["flops"] >= LARGE_FLOPS:
            d = case["dims"]
            part = Attention(queries=d["L"], keys=d["S"], heads=d["H"] * d["B"], width=d["d"])
            tiles = attention_share(part, round(gpu.sms.value))
            ceiling = gpu.attention[BEST].value * tiles
            reached["attention"].append(case["flops"] / seconds / ceiling)
        elif case["op"] == "causal_conv3d" and case["flops"] >= LARGE_FLOPS:
            reached["convolution"].append(case["flops"] / seconds / gpu.matmul.value)
        elif case["bound"] == "memory" and case["bytes"] >= LARGE_BYTES:
            reached["memory"].append(case["bytes"] / seconds / gpu.bandwidth.value)
    return {name: median(values) for name, values in reached.items() if values}


def _limits(values: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """What large products reach, to what the table says."""
    found: dict[str, float] = {}
    for case in values["cases"]:
        if case["dtype"] != "bfloat16":
            continue
        name = "matmul_fp8" if case["op"].startswith("fp8_gemm") else "matmul"
        known: Quantity | None = getattr(gpu, name)
        if known is not None:
            found[name] = max(found.get(name, 0.0), case["rate"] / known.value)
    return found


def _linked(values: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """Share of NVLink that the model's exchanges reach, else its links alone."""
    rates = [
        row["gb_per_s"]
        for row in values["patterns"]
        if row.get("kind") == "all_to_all" and row.get("gb_per_s")
    ]
    both = (values["link"] or {}).get("both_ways")
    if not rates and both:
        rates = [both["gb_per_s"]]
    return {"link": median(rates) * 1e9 / gpu.nvlink.value} if rates else {}


def kinds(gpu: Gpu, evidence: Evidence) -> dict[str, dict[str, Quantity]]:
    """Figures that a forecast rests on, by kind."""
    found: dict[str, dict[str, Quantity]] = {}
    for name, quantity in (gpu.quantities() | dict(evidence.figures)).items():
        found.setdefault(quantity.kind or ASSUMED, {})[name] = quantity
    return found
