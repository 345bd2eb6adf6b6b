"""Plot recorded results.

python benchmarks/plot.py chunk profiles/data/chunk.json profiles/chunk.png
python benchmarks/plot.py soak profiles/data/soak.json profiles/soak.png
python benchmarks/plot.py ops profiles/data/ops.json profiles/ops.png
"""

import argparse
from pathlib import Path
from statistics import median

from livetalk_kernels.inputs import REPORT_BYTES, read_json
from livetalk_model.plot_style import hardware_line, new_figure, save

STAGES = ("denoise", "audio K/V", "audio encoder", "decode", "warm decoder", "encode", "colour")


def chunk(result: dict, target: Path) -> None:
    """Draw stacked bars: where the time of one chunk goes, per variant."""
    names = list(result["summary"])
    where = result["machine"]
    title = f"{where['preset']}, {where['cpu']}, {where['threads']} threads"
    figure = new_figure(title, 8, 0.9 * len(names) + 1.8)
    axes = figure.subplots()
    left = [0.0] * len(names)
    for stage in STAGES:
        seconds = [
            median(entry[name]["stages"].get(stage, 0.0) for entry in result["rounds"])
            for name in names
        ]
        axes.barh(names, seconds, left=left, label=stage, height=0.6)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for name, end in zip(names, left, strict=True):
        ratio = result["summary"][name]["chunk_ratio"]
        axes.annotate(f" {end:.1f} s, {ratio:.2f} x", (end, name), va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.2)
    axes.set_xlabel("seconds per chunk of 28 frames (median)")
    axes.legend(ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    save(figure, target)


def soak(result: dict, target: Path) -> None:
    """Draw memory over the length of the stream; older results only have resident memory."""
    seconds = [sample["video_seconds"] for sample in result["samples"]]
    title = f"tiny at 64x64: growth after the first minute {result['memory_growth']:.2%}"
    figure = new_figure(title, 8, 3.2)
    axes = figure.subplots()
    for what in ("resident_bytes", "held_bytes"):
        sizes = [sample[what] / 2**20 for sample in result["samples"] if what in sample]
        if sizes:
            axes.plot(seconds, sizes, label=what.partition("_")[0])
    axes.axvline(60, color="grey", linestyle="--", linewidth=1)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.legend(loc="lower right")
    axes.set_xlabel("seconds of video")
    axes.set_ylabel("memory, MiB")
    save(figure, target)


def ops(result: dict, target: Path) -> None:
    """Draw every backend of every case of ``livetalk bench --json``: speed-up and % of floor."""
    rows = [(case, row) for case in result["cases"] for row in case["backends"] if row["time"]]
    if not rows:
        raise SystemExit("no backend was timed")
    names = list(dict.fromkeys(row["backend"] for _, row in rows))
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    title = f"{hardware_line(result['machine'])}, threads: {result['machine']['threads']}"
    figure = new_figure(title, 10, 0.24 * len(rows) + 0.2 * len(result["cases"]) + 1.4)
    panels = figure.subplots(1, 2, sharey=True)
    position, ticks, labels = 0.0, [], []
    for index, (case, row) in enumerate(rows):
        first = index == 0 or rows[index - 1][0] is not case
        position += 1.8 if first else 1.0
        ticks.append(position)
        where = f"{case['op']} {case['case']}, {case['dtype']}   " if first else ""
        labels.append(where + row["backend"])
        values = (row["vs_eager"], 100 * row["of_floor"])
        for axes, value, text in zip(panels, values, ("{:.2f}", "{:.0f} %"), strict=True):
            if value is not None:
                axes.barh(position, value, color=colours[row["backend"]], height=0.8)
                axes.annotate(" " + text.format(value), (value, position), va="center", fontsize=7)
    panels[0].set_yticks(ticks, labels, fontsize=7)
    panels[0].invert_yaxis()
    panels[0].axvline(1, color="grey", linestyle="--", linewidth=1)
    panels[1].axvline(100, color="grey", linestyle="--", linewidth=1)
    panels[0].set_xlabel("times as fast as PyTorch eager (p50)")
    panels[1].set_xlabel("floor's time / p50, %")
    for axes in panels:
        axes.margins(x=0.15)
    save(figure, target)


def main() -> None:
    """Draw one plot."""
    parser = argparse.ArgumentParser(description="Draw a recorded result.")
    parser.add_argument("kind", choices=("chunk", "ops", "soak"))
    parser.add_argument("data", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    draw = {"chunk": chunk, "ops": ops, "soak": soak}[args.kind]
    draw(
        read_json(args.data, "report", cure="name a recorded result", limit=REPORT_BYTES),
        args.target,
    )


if __name__ == "__main__":
    main()
