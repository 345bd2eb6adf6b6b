"""One style for all plots: fonts, resolution, and the line that names the hardware."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from livetalk_kernels.outputs import new_file

DPI = 120
SMALL, TITLE = 8, 9  # points: what stands in a picture, and above it


def new_figure(title: str, width: float, height: float) -> Figure:
    """Make a figure.

    Args:
        title: Above it, one line or two.
        width: In inches.
        height: In inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=TITLE)
    return figure


def hardware_line(machine: Mapping[str, Any]) -> str:
    """Name GPU or CPU, torch and commit, from what `livetalk_kernels.machine.machine` returned."""
    gpu = machine["gpu"]
    name = machine["cpu"] if not gpu else gpu["name"] if isinstance(gpu, Mapping) else gpu
    return f"{name}, torch {machine['torch']}, commit {machine['commit'] or 'unknown'}"


def picture(figure: Figure, kind: str = "png") -> bytes:
    """Render a figure as ``png`` or ``svg``."""
    drawn = BytesIO()
    figure.savefig(drawn, format=kind, dpi=DPI)
    return drawn.getvalue()


def save(figure: Figure, target: Path) -> None:
    """Write a figure in the format of the file's suffix.

    Raises:
        UserError: The file cannot be written.
    """
    drawn = picture(figure, target.suffix.lstrip(".").lower() or "png")
    with new_file(target) as file:
        file.write(drawn)
