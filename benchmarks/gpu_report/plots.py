"""The plots of ``make gpu-report``, if matplotlib is installed."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMED = "timed"
BAR = 0.34  # inches
Result = Mapping[str, Any]


def missing() -> str | None:
    """Return None, or why there are no plots."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed (pip install matplotlib)"
    return None


def draw(part: str, result: Any, folder: Path, subtitle: str) -> list[str]:
    """Draw a part's result.

    Returns:
        Names of the plots, none if there is nothing to draw.
    """
    function = PLOTS.get(part)
    if function is None or not result:
        return []
    from livetalk_model.plot_style import save  # needs matplotlib

    try:
        figure = function(f"{TITLES[part]}\n{subtitle}", result)
    except (KeyError, TypeError, ValueError, IndexError):  # cut off while it was written
        return []
    if figure is None:
        return []
    name = f"{part}-roofline.png" if part == "ops" else f"{part}.png"
    save(figure, folder / name)
    return [name]


def _axes(title: str, width: float, height: float) -> tuple[Any, Any]:
    """Create a figure and its axes."""
    from livetalk_model.plot_style import new_figure

    figure = new_figure(title, width, height)
    return figure, figure.subplots()


def _bars(title: str, rows: Sequence[tuple[str, float, str, str]], label: str) -> Any:
    """Draw horizontal bars: name, value, text after it, colour."""
    if not rows:
        return None
    figure, axes = _axes(title, 9, BAR * len(rows) + 1.6)
    for position, (_, value, text, colour) in enumerate(rows):
        axes.barh(position, value, color=colour, height=0.7)
        axes.annotate(f" {text}", (value, position), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(value for _, value, *_ in rows) * 1.75)
    axes.set_xlabel(label)
    return figure


def _race_rows(rows: Sequence[Result], head: str = "") -> list[tuple[str, float, str, str]]:
    found = []
    for row in rows:
        if row["state"] != TIMED:
            continue
        published = row["name"].startswith("published")
        colour = "0.6" if published else "C1" if row.get("approximate") else "C0"
        base = next((b for b in row["against"] if b.startswith("published")), None)
        text = f"{row['seconds']['p50'] * 1e3:.1f} ms, {row['of_floor']:.0%} of the floor"
        if base is not None and not published:
            text += f", {row['against'][base]:.2f} x {base.removeprefix('published, ')}"
        found.append((head + row["name"], row["seconds"]["p50"] * 1e3, text, colour))
    return found


def step(title: str, result: Result) -> Any:
    """Draw a bar for every way to take a step."""
    return _bars(title, _race_rows(result["rows"]), "ms a step (median); orange: approximate")


def vae(title: str, result: Result) -> Any:
    """Draw a bar for every way to decode and encode."""
    rows = [bar for work, rows in result["work"].items() for bar in _race_rows(rows, f"{work}: ")]
    return _bars(title, rows, "ms (median)")


def ops(title: str, result: Result) -> Any:
    """Draw achieved rates over arithmetic intensity, below the measured roofs."""
    points: dict[str, list[tuple[float, float]]] = {}
    roofs: dict[str, tuple[float, float]] = {}
    for case in result["cases"]:
        intensity = case["flops"] / max(1, case["bytes"])
        name = "FP8" if case["op"].startswith("fp8") else case["dtype"]
        width, rate = roofs.get(name, (0.0, 0.0))  # the best that any case's rounds saw
        roofs[name] = max(width, case["bandwidth"]), max(rate, case["rate"])
        for row in case["backends"]:
            if row["time"] is not None and case["flops"]:
                rate = case["flops"] / row["time"]["p50"] / 1e12
                points.setdefault(row["backend"], []).append((intensity, rate))
    if not points:
        return None
    figure, axes = _axes(title, 9, 5.5)
    xs = [x for values in points.values() for x, _ in values]
    low, high = min(xs) / 2, max(*xs, *(rate / width for width, rate in roofs.values())) * 2
    for index, (name, (width, rate)) in enumerate(roofs.items()):
        knee = rate / width
        line = [low, knee, max(high, knee * 2)]
        roof = [min(rate, x * width) / 1e12 for x in line]
        axes.plot(
            line, roof, color="0.3", linestyle="-:"[index % 2],
            label=f"roof, {name}: {width / 1e9:.0f} GB/s, {rate / 1e12:.3g} TFLOP/s",
        )  # fmt: skip
    markers = "osD^vP*X<>"
    for index, (name, values) in enumerate(points.items()):
        axes.scatter(
            *zip(*values, strict=True), label=name, s=28, marker=markers[index % len(markers)]
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, FLOP per byte of the op's least traffic")
    axes.set_ylabel("TFLOP/s (median)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def chunk(title: str, result: Result) -> Any:
    """Draw the stacked stages of every chunk."""
    chunks = result["chunks"]
    names = dict.fromkeys(
        name for entry in chunks for name in entry["stages"] if not name.endswith("(beside)")
    )
    figure, axes = _axes(title, 9, BAR * len(chunks) + 2.2)
    labels = [f"chunk {index + 1}" for index in range(len(chunks))]
    left = [0.0] * len(chunks)
    for name in names:
        seconds = [entry["stages"].get(name, 0.0) for entry in chunks]
        axes.barh(labels, seconds, left=left, label=name, height=0.7)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds; a chunk of 28 frames lasts {28 / result['settings']['fps']:.2f} s")
    axes.axvline(28 / result["settings"]["fps"], color="0.4", linestyle="--", linewidth=1)
    figure.legend(fontsize=7, ncols=5, loc="outside lower center")
    return figure


def scaling(title: str, result: Result) -> Any:
    """Draw the speed-up over ranks, with the ideal."""
    rows = [row for row in result["runs"] if "chunk" in row]
    if not rows:
        return None
    figure, axes = _axes(title, 6, 4)
    ranks = [row["ranks"] for row in rows]
    axes.plot(ranks, [row["speedup"] for row in rows], marker="o", label="measured")
    ideal = [rank / rows[0]["ranks"] for rank in ranks]
    axes.plot(ranks, ideal, color="0.5", linestyle="--", label="ideal")
    for row in rows:
        text = f"{row['chunk']['p50']:.2f} s"
        axes.annotate(text, (row["ranks"], row["speedup"]), fontsize=8, xytext=(0, -14),
                      textcoords="offset points", ha="center")  # fmt: skip
    axes.set_xticks(ranks)
    axes.margins(x=0.15)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks, a GPU each" if result["settings"]["device"] != "cpu" else "ranks")
    axes.set_ylabel("times as fast per chunk (median)")
    axes.legend()
    return figure


PLOTS: Mapping[str, Callable[[str, Result], Any]] = {
    "step": step,
    "vae": vae,
    "ops": ops,
    "chunk": chunk,
    "chunk-fp8": chunk,
    "scaling": scaling,
}
TITLES = {
    "step": "A denoising step, exact and in FP8, random weights",
    "vae": "The VAE, random weights",
    "ops": "Ops below the roofs measured in the same run",
    "chunk": "Chunks of a stream, random weights",
    "chunk-fp8": "Chunks of a stream in FP8, random weights",
    "scaling": "A stream on several ranks",
}
