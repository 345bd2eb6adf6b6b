"""Plots of ``livetalk evaluate``: measures by chunk, and decaying disturbances."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plot_style import hardware_line, new_figure, picture

PANES: Mapping[str, str] = {
    "picture_db": "picture, dB",
    "mouth_error": "mouth error",
    "sharpness": "sharpness relative to the truth",
    "saturation": "chroma relative to the truth",
    "away": "distance from the portrait, CIEDE2000",
    "seam": "jump at the seam",
    "identity": "colours of the parts, CIEDE2000",
}
_COLOURS = ("C0", "C1")
_STYLES = {"on": "-", "off": ":"}
_SMOOTH = 9  # chunks


def draw(report: Mapping[str, Any]) -> bytes:
    """Draw the report as PNG.

    Args:
        report: As in the JSON.
    """
    names = " against ".join(
        ", ".join(run["model"] for run in model["runs"]) for model in report["models"].values()
    )
    corrections = " and ".join(next(iter(report["models"].values()))["summary"])
    title = (
        f"{names}: mean of {report['settings']['streams']} streams a run, colour correction "
        f"{corrections}\n{hardware_line(report['machine'])}"
    )
    figure = new_figure(title, 12, 6)
    axes = figure.subplots(2, 4).ravel()
    minutes = report["settings"]["seconds"] / 60
    for pane, (measure, label) in zip(axes, PANES.items(), strict=False):
        for colour, (name, model) in zip(_COLOURS, report["models"].items(), strict=False):
            for correction, style in _STYLES.items():
                rows = [
                    stream["chunks"][measure]
                    for stream in model["streams"]
                    if stream["color_correction"] == correction
                ]
                if not rows:
                    continue
                values = _smoothed(np.array(rows, np.float64))
                times = (np.arange(len(values)) + 0.5) / len(values) * minutes
                pane.plot(times, values, style, color=colour, label=f"{name}, {correction}")
        pane.set_title(label, fontsize=9)
        pane.set_xlabel("minutes", fontsize=8)
        pane.grid(visible=True, alpha=0.3)
    _draw_recoveries(axes[len(PANES)], report)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return picture(figure)


def _draw_recoveries(pane: Any, report: Mapping[str, Any]) -> None:
    """Draw the distance of twins by chunk, one line each."""
    for colour, model in zip(_COLOURS, report["models"].values(), strict=False):
        for stream in model["streams"]:
            for twin in stream["recoveries"]:
                style = _STYLES[stream["color_correction"]]
                pane.plot(twin["latents"], style, color=colour, linewidth=0.8, alpha=0.6)
    if pane.lines:
        pane.set_yscale("log")
    pane.set_title("distance of disturbed twins", fontsize=9)
    pane.set_xlabel("chunks after the disturbance", fontsize=8)
    pane.grid(visible=True, alpha=0.3)


def _smoothed(rows_SK: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Average the streams, and neighbouring chunks; NaN where no stream has a value."""
    known = np.isfinite(rows_SK)
    total, count = np.where(known, rows_SK, 0).sum(axis=0), known.sum(axis=0).astype(float)
    window = np.ones(min(_SMOOTH, len(total)))
    total, count = (np.convolve(values, window, mode="same") for values in (total, count))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
