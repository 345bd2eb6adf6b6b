"""The plot of ``livetalk plan --plot``: frames per second and time per chunk over GPUs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from livetalk_kernels.runtime.timed_comm import COMMUNICATION

from ..dry_run.record import (
    AUDIO,
    AUDIO_KV,
    COLOUR,
    DECODE,
    DENOISE,
    ENCODE,
    TO_HOST,
    WARM,
)
from .forecast import FPS, REAL_TIME
from .search import Plan

SUFFIXES = (".png", ".svg")
WORLDS = (*range(1, 9), 10, 12, 14, 16)  # above 8 GPUs, two nodes with half of them each

_REST = "the rest"
_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "denoise, computing": "#4E79A7",
        "denoise, communication": "#3d405b",
        DECODE: "#F28E2B",
        WARM: "#FFBE7D",
        ENCODE: "#59A14F",
        _REST: "#9aa5b1",
    }
)
_LINES = (("exact", "#4E79A7", "o"), ("FP8 linears (approximate)", "#c8553d", "s"))

Curves = Mapping[bool, Sequence[Plan | None]]
"""FP8 or not -> the best plan for each of `WORLDS`."""


def draw(curves: Curves, target: Path, *, title: str, commit: str) -> None:
    """Draw the scaling over 1 to 16 GPUs.

    Args:
        curves: Forecasts; stages are shown for the first.
        target: Output file, .png or .svg.
        title: Model, size and hardware.
        commit: Commit of the code that made the forecast.
    """
    from ..plot_style import new_figure, save  # matplotlib takes a moment

    head = f"Forecast, not measured: {title}\ncommit {commit or 'unknown'}"
    figure = new_figure(head, 11, 5.4)
    left, right = figure.subplots(1, 2)
    for fp8, plans in curves.items():
        name, colour, marker = _LINES[fp8]
        points = [(plan.layout.world, plan.forecast.fps) for plan in plans if plan]
        left.plot(*zip(*points, strict=True), marker=marker, color=colour, label=name)
    left.axhline(FPS, color="black", linestyle="--", linewidth=1)
    left.annotate(
        "real time: 25 FPS", (16.4, FPS), ha="right", va="bottom", fontsize=8, xytext=(0, 2),
        textcoords="offset points",
    )  # fmt: skip
    left.set_ylabel("new frames per second")
    left.set_ylim(bottom=0)
    left.set_title("Throughput", fontsize=10)
    left.legend(fontsize=8, loc="upper left")
    shown, plans = next(iter(curves.items()))
    bottoms = [0.0] * len(plans)
    for name, colour in _COLOURS.items():
        values = [_pieces(plan).get(name, 0.0) if plan else 0.0 for plan in plans]
        if any(values):
            right.bar(WORLDS, values, bottom=bottoms, color=colour, label=name, width=0.75)
        bottoms = [a + b for a, b in zip(bottoms, values, strict=True)]
    for world, plan, height in zip(WORLDS, plans, bottoms, strict=True):
        text = "does not\nfit" if plan is None else f"{height:.2f}"
        right.annotate(
            text, (world, height), ha="center", va="bottom", fontsize=7, xytext=(0, 2),
            textcoords="offset points",
        )  # fmt: skip
    right.axhline(REAL_TIME, color="black", linestyle="--", linewidth=1)
    right.annotate(
        f"real time: {REAL_TIME:.2f} s", (16.4, REAL_TIME), ha="right", va="bottom", fontsize=8,
        xytext=(0, 2), textcoords="offset points",
    )  # fmt: skip
    right.set_ylabel("seconds of a chunk (28 new frames)")
    right.set_title(f"Stages of a chunk, {_LINES[shown][0]}", fontsize=10)
    right.legend(fontsize=8, loc="upper right")
    for axes in (left, right):
        axes.set_xticks(WORLDS)
        axes.set_xlim(0.2, 16.8)
        axes.set_xlabel("GPUs (above 8: two nodes)")
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    save(figure, target)


def _pieces(plan: Plan) -> dict[str, float]:
    """Return the seconds of a chunk in stacking order."""
    found = plan.forecast
    sent = found.stages[DENOISE][COMMUNICATION]
    rest = sum(found.stage(name) for name in (AUDIO, AUDIO_KV, COLOUR, TO_HOST)) + found.added
    return {
        "denoise, computing": found.stage(DENOISE) - sent,
        "denoise, communication": sent,
        DECODE: found.stage(DECODE),
        WARM: found.stage(WARM),
        ENCODE: found.stage(ENCODE),
        _REST: rest,
    }
