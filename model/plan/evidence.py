"""GPU reports as evidence: which fractions of the hardware's own figures were really achieved.

Being relative, they carry over between types of GPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import ASSUMED, BEST, GPUS, HERE, Gpu, Quantity, find_gpu

from .fit import Prior
from .machine import GpuMachine, Shares, attention_share
from .recorded import BENCH, COMM, PROFILE, Maker, Observed, Recorded, fit_reports, short_name
from .work import Attention

LARGE_BYTES, LARGE_FLOPS = 1e8, 1e11  # per call, for it to be informative about a GPU


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What report files say about GPUs.

    Attributes:
        shares: Fitted or measured; the rest is as without files.
        measured: Names of the shares that files determine -> the files.
        figures: Hardware figures that were measured instead.
    """

    shares: Shares
    measured: Mapping[str, str]
    figures: Mapping[str, Quantity]


def gpu_evidence(recorded: Sequence[Recorded], gpu: Gpu, start: Shares) -> Evidence:
    """Determine shares and rates from files of this GPU, or of another, whose shares carry over.

    Their order does not matter: of several files' measurements the median counts, for large
    products the maximum; and profiles, all in one fit, take precedence over what ops and links
    achieve alone.

    Raises:
        UserError: A file is from a CPU, or from a GPU that is not in the table.
    """
    files = [(entry, _gpu_of(entry, gpu)) for entry in recorded]
    limits: dict[str, tuple[float, str]] = {}  # figure -> fraction achieved, and in which file
    for entry, other in files:
        if entry.kind == BENCH:
            with entry.reading():
                own = _limits(entry.values, other)
            for name, share in own.items():
                limits[name] = max(limits.get(name, (0.0, "")), (share, _where(entry, other)))
    reached: dict[str, list[tuple[float, str]]] = {}  # share -> value from each file
    for entry, other in files:
        found: dict[str, float] = {}
        with entry.reading():
            if entry.kind == BENCH:
                found = _benched(entry.values, other, _figures(other, limits))
            elif entry.kind == COMM:
                found = _linked(entry.values, other)
        for name, share in found.items():
            reached.setdefault(name, []).append((share, _where(entry, other)))
    values = {name: median(share for share, _ in entries) for name, entries in reached.items()}
    measured = {name: _joined(where for _, where in entries) for name, entries in reached.items()}
    shares = replace(start, **values)
    profiles = [(entry, other) for entry, other in files if entry.kind == PROFILE]
    if profiles:
        observed = [
            (
                Observed.of(entry),
                GpuMachine(gpu=other, shares=shares, measured=_figures(other, limits)),
            )
            for entry, other in profiles
        ]
        fitted = _profiled(observed, shares)
        shares = replace(shares, **fitted)
        measured |= dict.fromkeys(fitted, _joined(_where(*pair) for pair in profiles))
    return Evidence(shares=shares, measured=measured, figures=_figures(gpu, limits))


def _gpu_of(entry: Recorded, wanted: Gpu) -> Gpu:
    name = entry.gpu_name
    found = find_gpu(name) if name else None
    if found is None:
        known = ", ".join(gpu.title for gpu in GPUS.values())
        raise UserError(
            f"--fit {entry.path}: was measured on {name or 'a CPU'}; for --gpu {wanted.name} name "
            f"reports of one of {known}"
        )
    return found


def _where(entry: Recorded, gpu: Gpu) -> str:
    return f"{short_name(entry.path)} ({gpu.title})"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _figures(gpu: Gpu, limits: Mapping[str, tuple[float, str]]) -> dict[str, Quantity]:
    """Return a GPU's figures as measured, on it or proportionally on another."""
    found = {}
    for name, (share, where) in limits.items():
        known: Quantity | None = getattr(gpu, name)
        if known is not None:
            found[name] = Quantity(value=known.value * share, source=where, kind=HERE)
    return found


def _profiled(reports: Sequence[tuple[Observed, GpuMachine]], start: Shares) -> dict[str, float]:
    """Fit the shares that explain all reports best, each on its own GPU."""
    linked = any(report.layout.world > 1 for report, _ in reports)
    priors = {
        name: Prior(value=value, spread=1.0, why="published figures")
        for name, value in start.as_dict().items()
        if name != "link" or linked
    }

    def on(machine: GpuMachine) -> Maker:
        return lambda values: machine.with_shares(replace(start, **values))

    return fit_reports([(report, on(machine)) for report, machine in reports], priors)


def _best(case: Mapping[str, Any]) -> float | None:
    """Return the seconds of the fastest exact backend; None if none was timed."""
    times = [
        row["time"]["p50"]
        for row in case["backends"]
        if row.get("time") and not row.get("approximate")
    ]
    return min(times, default=None)


def _benched(
    values: Mapping[str, Any], gpu: Gpu, figures: Mapping[str, Quantity]
) -> dict[str, float]:
    """Compute the shares of attention, convolution and memory that large cases achieve."""
    matmul = figures.get("matmul", gpu.matmul).value  # a forecast multiplies by the same
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
            reached["convolution"].append(case["flops"] / seconds / matmul)
        elif case["bound"] == "memory" and case["bytes"] >= LARGE_BYTES:
            reached["memory"].append(case["bytes"] / seconds / gpu.bandwidth.value)
    return {name: median(values) for name, values in reached.items() if values}


def _limits(values: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """Compute what large products achieve, relative to the table."""
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
    """Compute the share of NVLink that the model's exchanges achieve, else its links alone."""
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
    """Group the figures that a forecast rests on by kind."""
    found: dict[str, dict[str, Quantity]] = {}
    for name, quantity in (gpu.quantities() | dict(evidence.figures)).items():
        found.setdefault(quantity.kind or ASSUMED, {})[name] = quantity
    return found
