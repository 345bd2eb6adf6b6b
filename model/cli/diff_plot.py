"""The plot of ``livetalk diff``: the error of every layer, by depth."""

from pathlib import Path
from typing import Any

from ..plot_style import hardware_line, new_figure, save

LABELS = {
    "self_attn": "self-attention",
    "cross_attn": "text and image",
    "audio_cross_attn": "audio",
    "ffn": "feed-forward",
}


def draw(report: dict[str, Any], target: Path) -> None:
    """Draw the layers' errors and the chunks' PSNR.

    Args:
        report: As printed by ``livetalk diff --json``.
        target: Output file, .png or .svg.
    """
    lines: dict[str, list[float]] = {part: [] for part in LABELS}
    for name, error in report["layers"].items():
        lines[name.rpartition(".")[2]].append(error["relative"])
    weights = ", random weights" if report["random_weights"] else ""
    sides = f"{report['a']['config']} against {report['b']['config']}"
    title = f"{report['model']}{weights}: {sides}\n{hardware_line(report['machine'])}"
    figure = new_figure(title, 8, 4.5)
    axes, side = figure.subplots(1, 2, width_ratios=(3, 1))
    for part, values in lines.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, label=LABELS[part])
    positive = [value for values in lines.values() for value in values if value > 0]
    if positive:
        axes.set_yscale("log")
    axes.set_xlabel("block")
    axes.set_ylabel("relative L2 error of the layer, on equal inputs")
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    axes.grid(visible=True, alpha=0.3)
    psnr = report["psnr"]
    side.bar(range(1, len(psnr) + 1), [0 if value is None else value for value in psnr])
    side.set_xticks(range(1, len(psnr) + 1))
    side.set_xlabel("chunk (0 dB: equal)" if None in psnr else "chunk")
    side.set_ylabel("PSNR of the frames, dB")
    save(figure, target)
