"""``metrics.png``: the metrics of a run, one pane each."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from livetalk_kernels.outputs import new_file

from .records import METRICS, read_records

CURVES = "metrics.png"
_COLUMNS = 3
_SMOOTH = 20  # a curve averages 1/20 of its points at a time
_LOGARITHMIC = "loss", "norm"
_LEVELS: Mapping[str, float] = {"lag": 1.0, "agreement": 0.0}  # reference lines


def write_curves(folder: Path) -> None:
    """Plot a run's metrics into its folder, if there are any yet.

    Raises:
        UserError: The metrics are damaged, or the picture cannot be written.
    """
    entries = read_records(folder / METRICS)
    if entries:
        with new_file(folder / CURVES) as file:
            file.write(draw_curves(entries))


def draw_curves(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Plot every metric over the updates, with a moving average, and return a PNG.

    Args:
        entries: Of ``metrics.jsonl``; at least one.
    """
    from matplotlib.figure import Figure

    names = sorted({name for entry in entries for name in entry} - {"step"})
    rows = math.ceil(len(names) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.4 * rows), layout="constrained")
    panes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for pane, name in zip(panes, names, strict=False):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        steps, values = zip(*points, strict=True)
        pane.plot(steps, values, ".", color="C0", markersize=2, alpha=0.4)
        pane.plot(*means(steps, values), color="C0")
        kind = name.split()[-1]
        if kind in _LEVELS:
            pane.axhline(_LEVELS[kind], color="gray", linewidth=0.8)
        if kind in _LOGARITHMIC and min(values) > 0:
            pane.set_yscale("log")
        pane.set_title(name, fontsize=9)
        pane.set_xlabel("updates", fontsize=8)
        pane.grid(visible=True, alpha=0.3)
    for pane in panes[len(names) :]:
        pane.set_axis_off()
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    return picture.getvalue()


def means(
    steps: Sequence[float], values: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Average neighbours: a twentieth of the points, at each place that has that many.

    Args:
        steps: Where the values stand.
        values: As many.

    Returns:
        Means of both.
    """
    width = max(1, len(values) // _SMOOTH)
    places = range(len(values) - width + 1)
    found_steps, found_values = (
        [sum(numbers[place : place + width]) / width for place in places]
        for numbers in (steps, values)
    )
    return found_steps, found_values
