"""Tables of ``livetalk doctor --memory``."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from livetalk_kernels.units import data_size

from ..dry_run.measure import Measured
from ..dry_run.memory import ASSUMPTIONS, Model, Prediction
from .common import console, escape
from .tables import plain_table


def memory_settings(model: Model) -> dict[str, Any]:
    """Describe what is predicted, for machines."""
    return {
        "device": model.device,
        "dtype": {4: "fp32", 2: "bf16"}[model.dtype.itemsize],
        "precision": "fp8" if model.fp8 else "exact",
        "fuse_bias": model.fuse_bias,
        "size": list(model.size),
        "steps": model.steps,
        "ulysses": model.mesh.ulysses,
        "ring": model.mesh.ring,
    }


def memory_title(name: str, model: Model) -> str:
    """Say what is predicted; ``name`` is that of the preset or checkpoint."""
    height, width = model.size
    parts = [name, f"{height}x{width}", memory_settings(model)["dtype"]]
    if model.fp8:
        parts.append("FP8 linears")
    if model.fuse_bias:
        parts.append("fused biases")
    parts.append("GPU" if model.device == "cuda" else "CPU")
    if model.mesh.world > 1:
        parts.append(f"ulysses {model.mesh.ulysses} x ring {model.mesh.ring}, each rank")
    return ", ".join(parts)


def print_memory(
    title: str, prediction: Prediction, measured: Measured | None, *, ranks: int
) -> None:
    """Print weights, caches and the largest phase, and all phases below them."""
    table = _table("what", measured)
    seen = measured.weights if measured else {}
    _add_sum(table, "weights", prediction.weights, seen, measured)
    _add_sum(table, "caches", prediction.caches, {}, measured)
    peak = prediction.peak
    _add_row(table, f"activations in '{prediction.peak_phase}'", peak.activations)
    _add_row(table, "workspace in it", peak.workspace)
    if measured is not None:
        _add_row(table, "both", peak.total, measured.peak)
    if prediction.assumed is not None:
        table.add_section()
        for name, size in vars(prediction.assumed).items():
            if size:
                _add_row(table, f"{name} (assumed)", size)
    table.add_section()
    _add_row(table, "total", prediction.total, measured.total if measured else None)
    phases = _table("phase", measured)
    kept = sum(prediction.caches.values())
    for name, phase in prediction.phases.items():
        found = measured.phases.get(name) if measured else None
        had = None if measured is None or found is None else measured.caches + found
        _add_row(phases, name, kept + phase.total, had)
    out = console()
    out.print(f"Memory: {escape(title)}")
    out.print(table)
    out.print("Peak of each phase, in addition to the weights:")
    out.print(phases)
    notes = []
    if prediction.assumed is not None:
        notes.append("Untested on a GPU; memory that the allocator cannot reuse comes on top.")
    if ranks > 1:
        notes.append(ASSUMPTIONS)
    for note in notes:
        out.print(note)


def _table(first: str, measured: Measured | None) -> Table:
    numbers = (">predicted", ">measured", ">difference")[: 3 if measured else 1]
    return plain_table(None, (first, *numbers))


def _add_sum(
    table: Table,
    name: str,
    parts: Mapping[str, int],
    seen: Mapping[str, int],
    measured: Measured | None,
) -> None:
    """Add a row for the sum, and one for each part."""
    total = None
    if measured is not None:
        total = sum(seen.values()) if seen else measured.caches
    _add_row(table, name, sum(parts.values()), total)
    for part, size in parts.items():
        _add_row(table, f"  {part}", size, seen.get(part))
    table.add_section()


def _add_row(table: Table, name: str, predicted: int, measured: int | None = None) -> None:
    row = [name, data_size(predicted)]
    if measured is not None:
        row += [data_size(measured), f"{100 * (predicted / measured - 1):+.1f} %"]
    table.add_row(*row)
