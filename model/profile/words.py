"""A report in words: the lines above its tables and plots, and numbers with their units."""

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

UNATTRIBUTED = "unattributed"
"""Time outside of any stage."""


def settings_line(report: Json) -> str:
    """Summarise model, size, dtype, ranks and all else that affects times; note random weights."""
    settings = report["settings"]
    height, width = settings["size"]
    parts = [f"{settings['model']} at {height}x{width}", settings["dtype"]]
    if settings["precision"] != "exact":
        parts.append(f"{settings['precision'].upper()} linears (approximate)")
    ranks = settings["ranks"]
    if ranks["world"] > 1:
        split = f"ulysses {ranks['ulysses']} x ring {ranks['ring']}, VAE {ranks['vae_grid']}"
        parts.append(f"{ranks['world']} ranks ({split})")
    else:
        parts.append("1 rank")
    parts.append(f"{settings['steps']} steps" if settings["steps"] != 1 else "1 step")
    if settings["cuda_graphs"]:
        parts.append("CUDA graphs")
    if settings["compiled"]:
        parts.append("torch.compile")
    if not settings["reuse"]:
        parts.append("published schedule")
    if settings["random_weights"]:
        parts.append("random weights")
    return ", ".join(parts)


def hardware_line(report: Json) -> str:
    """Summarise hardware, torch, commit and date."""
    where, settings = report["machine"], report["settings"]
    gpu = where["gpu"]
    if gpu is not None and settings["device"].startswith("cuda"):
        count = settings["ranks"]["world"]
        parts = [f"{count} x {gpu['name']}" if count > 1 else gpu["name"]]
        parts += [f"driver {gpu['driver']}"] if gpu.get("driver") else []
        parts += [f"CUDA {gpu['cuda']}"] if gpu.get("cuda") else []
    else:
        threads = settings["threads"]
        parts = [where["cpu"], f"{where['cores']} cores"]
        each = " a rank" if settings["ranks"]["world"] > 1 else ""
        parts.append(("1 thread" if threads == 1 else f"{threads} threads") + each)
    commit = where["commit"] or "unknown"
    return ", ".join([*parts, f"torch {where['torch']}", f"commit {commit}", where["date"]])


def op_name(op: Json, *, options: bool = True) -> str:
    """Format an op's case: its name, sizes, options and backend."""
    sizes = " ".join(f"{letter}{size}" for letter, size in op["dims"].items())
    chosen = " ".join(f"{name}={value}" for name, value in op["options"].items() if options)
    return ", ".join(filter(None, (op["op"], sizes, chosen, op["backend"])))


ABOVE = (
    "Above 100 %: the algorithm does fewer operations than the op's cost counts (Winograd), or the "
    "data was in a cache."
)
"""Explanation for an op that is faster than its floor."""


def above(report: Json) -> bool:
    """Return whether an op is faster than its floor."""
    return any(op["of_floor"] > 1 for op in report["ops"])


def op_time(op: Json) -> float:
    """Return the seconds of all its calls per chunk."""
    return float(op["calls"] * op["seconds"])
