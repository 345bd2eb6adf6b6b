"""The plots of a profile: where a chunk's time goes, rooflines, a timeline, chunk after chunk.

All are drawn from ``report.json`` (see ``report.schema.json``) and the ranks' traces, 1200 pixels
wide. Plots without data are omitted.
"""

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from livetalk_kernels.units import ms, percent, prefixed

from ..config import NEW_FRAMES
from ..plot_style import DPI, save
from .plot_data import (
    Curve,
    Span,
    breakdown_bars,
    colour_of,
    ink_on,
    lane_spans,
    telemetry_panels,
    usual_chunks,
)
from .words import (
    UNATTRIBUTED,
    hardware_line,
    op_name,
    op_time,
    settings_line,
)

Json = Mapping[str, Any]

_WIDTH = 10.0  # inches
PICTURES = ("breakdown.png", "roofline.png", "timeline.png", "chunks.png")
"""File names of all plots."""
_SMALL = 7.5  # points
_TITLE = 115  # characters per line
_CHARACTER = 0.062  # approximate inches per small character
_CENTRED: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": _SMALL}
_AT_EDGE = ("axes fraction", "data")
_LISTED = 14  # ops
_HEADING = 0.4  # inches
_GREY, _LIGHT = "#6b6b6b", "#dddddd"
_ROOFS = ("#222222", "#b3541e", "#2b6777", "#6a4c93")


def draw_all(report: Json, traces: Sequence[Json], folder: Path) -> list[str]:
    """Draw all plots for which there is data.

    Args:
        report: As in ``report.json``.
        traces: The ranks' Chrome traces, rank 0 first.
        folder: Folder for the files; created if missing.

    Returns:
        Names of the files: ``breakdown.png``, ``roofline.png`` unless no op was recorded,
        ``timeline.png`` unless no range is in a measured chunk, ``chunks.png``.
    """
    figures = _breakdown(report), _roofline(report), _timeline(report, traces), _chunks(report)
    pairs = zip(PICTURES, figures, strict=True)
    drawn = {name: figure for name, figure in pairs if figure is not None}
    for name, figure in drawn.items():
        save(figure, folder / name)
    return list(drawn)


def _breakdown(report: Json) -> Figure:
    """Draw stacked bars: a chunk by stage, each stage by part, and concurrent work."""
    bars = breakdown_bars(report)
    heights = [0.36 + 0.155 * len(bar.notes) for bar in bars]  # inches
    first_beside = next((row for row, bar in enumerate(bars) if bar.overlapped), None)
    if first_beside is not None:
        heights[first_beside] += _HEADING
    body, top, left = sum(heights), 0.72, 1.95
    parts = dict.fromkeys(part for bar in bars[1:] for part in bar.pieces if len(bar.pieces) > 1)
    bottom = 0.65 + 0.2 * math.ceil(len(parts) / _columns(parts))
    height = body + bottom + top
    figure = _figure(report, "Where a chunk's time goes", height)
    axes = figure.add_axes((left / _WIDTH, bottom / height, 0.97 - left / _WIDTH, body / height))
    total = report["summary"]["chunk"]["p50"]
    room = 1.18 * max([total, *(sum(bar.pieces.values()) for bar in bars)])  # seconds
    axes.set(xlim=(0, room * 1e3), ylim=(body, 0))  # inches, downwards
    axes.axvline(total * 1e3, color=_GREY, linestyle=":", linewidth=1)
    starts = [sum(heights[:row]) for row in range(len(bars))]
    inset, ticks = 0.004 * room * 1e3, []
    for row, (bar, start) in enumerate(zip(bars, starts, strict=True)):
        y, end = start + 0.17, 0.0
        if row == first_beside:
            y += _HEADING
            axes.axhline(y - 0.42, color=_LIGHT, linewidth=1)
            text = "overlapped: on other lanes while a chunk is made, in no sum above"
            axes.text(inset, y - 0.27, text, va="center", fontsize=8, style="italic")
        ticks.append(y)
        for piece, seconds in bar.pieces.items():
            colour = colour_of(piece.rpartition(": ")[2])
            style: dict[str, Any] = {"color": colour, "edgecolor": "white", "linewidth": 0.5}
            if bar.overlapped:
                style |= {"color": "white", "edgecolor": colour, "hatch": "////"}
            elif piece == UNATTRIBUTED:
                style |= {"edgecolor": _GREY}
            axes.barh(y, seconds * 1e3, left=end * 1e3, height=0.24, **style)
            wide = seconds / room * (0.97 * _WIDTH - left)
            if len(bar.pieces) > 1 and wide > _CHARACTER * (len(piece) + 1):
                axes.text((end + seconds / 2) * 1e3, y, piece, color=ink_on(colour), **_CENTRED)
            end += seconds
        end = max(end, total) if row == 0 else end
        axes.text(end * 1e3 + inset, y, bar.label, va="center", fontsize=8)
        for line, note in enumerate(bar.notes):
            beneath = y + 0.2 + 0.155 * line
            axes.text(inset, beneath, note, va="center", fontsize=_SMALL, color=_GREY)
    names = [textwrap.shorten(bar.name, 32, placeholder=" …") for bar in bars]
    axes.set_yticks(ticks, names)
    axes.tick_params(labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(
        f"ms per chunk of {NEW_FRAMES} frames, medians (of each, so they need not add up to the "
        "chunk's); % of wall time",
        fontsize=8,
    )
    if parts:
        _legend(figure, parts)
    _bare(axes)
    return figure


def _roofline(report: Json) -> Figure | None:
    """Draw rates against intensity below the roofs, and the largest ops relative to floors."""
    ops = sorted(report["ops"], key=op_time, reverse=True)
    placed = [op for op in ops if op["flops"]]
    if not placed:
        return None
    largest, whole = ops[:_LISTED], sum(map(op_time, ops))
    listed = 0.24 * len(largest)  # inches
    height = 6.5 + listed
    figure = _figure(report, "What the ops reach, and what this machine allows", height)
    axes = figure.add_axes((0.08, (listed + 1.3) / height, 0.9, 4.5 / height))
    bars = figure.add_axes((0.5, 0.55 / height, 0.36, listed / height))
    _roofs(axes, report["limits"], [op["flops"] / op["bytes"] for op in placed])
    sizes = [25 + 900 * op_time(op) / whole for op in placed]  # square points
    for op, size in zip(placed, sizes, strict=True):
        x, rate, colour = op["flops"] / op["bytes"], op["rate"], colour_of(op["part"])
        roof = report["limits"].get(op.get("operands", op["dtype"]))
        if roof is not None:
            limit = min(roof["rate"], x * roof["bandwidth"])
            clear = 0.7 if op in largest else 0.2
            axes.vlines(x, rate, limit, color=colour, linewidth=1, alpha=clear)
        axes.scatter(x, rate, s=size, color=colour, edgecolor="white", alpha=0.85, zorder=3)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom / 1.5, top * 2)
    _number(figure, axes, placed, sizes, [ops.index(op) for op in placed])
    parts = dict.fromkeys(op["part"] for op in ops)
    title = "part; area: share of the ops' time; line: up to the roof"
    axes.legend(
        handles=_patches(parts), loc="lower right", fontsize=8, title=title, title_fontsize=8
    )
    for row, op in enumerate(largest):
        bars.barh(row, 100 * op["of_floor"], color=colour_of(op["part"]), height=0.7)
        text = f"{percent(op['of_floor'])}, {op['bound']}"
        bars.annotate(text, (1.02, row), xycoords=_AT_EDGE, va="center", fontsize=_SMALL)
    names = [f"{op['stage']}: {op_name(op, options=False)}" for op in largest]
    names = [textwrap.shorten(name, 72, placeholder=" …") for name in names]
    shares = [f"{percent(op_time(op) / whole):>6}" for op in largest]
    labels = [
        f"{name}  {share}  {row + 1:>2}"
        for row, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    bars.set_yticks(range(len(largest)), labels, fontsize=_SMALL)
    bars.set_ylim(len(largest) - 0.4, -0.6)
    bars.axvline(100, color=_GREY, linestyle="--", linewidth=1)
    bars.set_xlim(0, max(105.0, *(102 * op["of_floor"] for op in largest)))
    bars.tick_params(axis="x", labelsize=8)
    bars.set_xlabel("least time that the roofs allow / time taken, %; what sets it", fontsize=8)
    note = "stage: op, sizes, backend;\nshare of the ops' time; number above"
    hidden = len(ops) - len(placed)
    note += f"\n{hidden} without FLOPs: under no roof" if hidden else ""
    figure.text(0.02, 0.08 / height, note, fontsize=_SMALL, color=_GREY)
    _bare(bars)
    return figure


def _roofs(axes: Axes, limits: Mapping[str, Json], intensities: Sequence[float]) -> None:
    """Draw the limits of every dtype, over the occurring intensities."""
    ridges = [limit["rate"] / limit["bandwidth"] for limit in limits.values()]
    low, high = min([*intensities, *ridges]) / 3, max([*intensities, *ridges]) * 15
    bandwidths: dict[str, float] = {}
    for index, (dtype, limit) in enumerate(limits.items()):
        ridge, colour = limit["rate"] / limit["bandwidth"], _ROOFS[index % len(_ROOFS)]
        values = [min(limit["rate"], x * limit["bandwidth"]) for x in (low, ridge, high)]
        axes.plot([low, ridge, high], values, color=colour, linewidth=1.3)
        label = f"{dtype}: {prefixed(limit['rate'])}FLOP/s "
        axes.text(high, 1.06 * limit["rate"], label, ha="right", color=colour, fontsize=8)
        bandwidths.setdefault(f"{prefixed(limit['bandwidth'])}B/s", limit["bandwidth"])
    for label, bandwidth in bandwidths.items():
        place = 1.1 * low, 1.1 * low * bandwidth
        style: dict[str, Any] = {"textcoords": "offset points", "va": "top", "fontsize": 8}
        axes.annotate(f"memory: {label}", place, (8, 2), **style)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_xlabel("arithmetic intensity, FLOP per byte", fontsize=9)
    axes.set_ylabel("rate, FLOP/s", fontsize=9)
    axes.grid(visible=True, which="major", alpha=0.25)


def _number(
    figure: Figure, axes: Axes, ops: Sequence[Json], sizes: Sequence[float], numbers: Sequence[int]
) -> None:
    """Write the numbers of the listed ops next to their points, where there is space."""
    figure.canvas.draw()
    points = [axes.transData.transform((op["flops"] / op["bytes"], op["rate"])) for op in ops]
    radii = [math.sqrt(size) / 2 * DPI / 72 for size in sizes]  # pixels
    taken = [(*point, radius) for point, radius in zip(points, radii, strict=True)]
    for (x, y), radius, number in zip(points, radii, numbers, strict=True):
        if number >= _LISTED:
            continue
        spots = (
            (x + far * math.cos(turn * math.pi / 8), y + far * math.sin(turn * math.pi / 8))
            for far in (radius + 11, radius + 24, radius + 40, radius + 60)
            for turn in (2, 6, 14, 10, 0, 8, 4, 12)
        )
        free = (s for s in spots if all(math.dist(s, at) > r + 9 for *at, r in taken))
        spot = next(free, (x, y + radius))
        taken.append((*spot, 9.0))
        line = {"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 0}
        axes.annotate(
            str(number + 1), (x, y), spot, xycoords="figure pixels", textcoords="figure pixels",
            arrowprops=line, zorder=4, **_CENTRED,
        )  # fmt: skip


def _chunks(report: Json) -> Figure:
    """Draw each chunk's time by stage, in order, with percentiles and the budget."""
    height = 5.4
    figure = _figure(report, "Latency of each chunk", height)
    axes = figure.add_axes((0.08, 1.15 / height, 0.76, 3.5 / height))
    warm, chunks = len(report["warmup"]), [*report["warmup"], *report["chunks"]]
    stages = [*dict.fromkeys(name for chunk in chunks for name in chunk["stages"]), UNATTRIBUTED]
    edges = [index - 0.5 for index in range(len(chunks) + 1)]
    below = [0.0] * len(chunks)
    for stage in stages:
        above = [base + _in_stage(chunk, stage) for base, chunk in zip(below, chunks, strict=True)]
        axes.stairs(above, edges, baseline=below, fill=True, color=colour_of(stage))
        below = above
    budget = NEW_FRAMES / report["settings"]["fps"]
    top = 1.12 * max([*below, *([budget] if budget < 3 * max(below) else [])])
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, top))
    if len(chunks) <= 60:
        axes.vlines(edges[1:-1], 0, top, color="white", linewidth=1.5)
    if warm:
        axes.axvspan(edges[0], warm - 0.5, color="white", alpha=0.6, zorder=2)
        axes.axvspan(edges[0], warm - 0.5, fill=False, hatch="..", edgecolor=_LIGHT, zorder=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(warm / 2 - 0.5, 0.95 * top, "warm-up", zorder=4, bbox=box, **_CENTRED)
    spread = report["summary"]["chunk"]
    lines = [
        (spread["p50"], "-", "#111111", "p50"),
        (spread["p95"], "--", "#111111", "p95"),
        (budget, "-.", "#c1121f", "real time"),
    ]
    free = 0.0  # so that labels do not overlap
    for value, style, colour, name in sorted(lines):
        axes.axhline(value, linestyle=style, color=colour, linewidth=1.2, zorder=3)
        text = f"{name}  {ms(value)}" + (" (above)" if value > top else "")
        place = max(min(value, top), free)
        free = place + 0.045 * top
        label: dict[str, Any] = {"va": "center", "fontsize": 8, "color": colour}
        axes.annotate(text, (1.01, place), xycoords=_AT_EDGE, annotation_clip=False, **label)
    step = math.ceil(len(chunks) / 30)
    axes.set_xticks(range(0, len(chunks), step), [str(c["index"]) for c in chunks[::step]])
    axes.tick_params(labelsize=8)
    axes.set_xlabel("chunk, in the order of time", fontsize=9)
    axes.set_ylabel(f"seconds per chunk of {NEW_FRAMES} frames", fontsize=9)
    _legend(figure, stages)
    _bare(axes)
    return figure


def _in_stage(chunk: Json, stage: str) -> float:
    """Return the seconds of a chunk in a stage."""
    if stage == UNATTRIBUTED:
        return float(chunk["unattributed"])
    return float(sum(chunk["stages"].get(stage, {}).values()))


def _timeline(report: Json, traces: Sequence[Json]) -> Figure | None:
    """Draw one or two typical chunks: what ran on which lane, and telemetry on the same axis."""
    chunks = usual_chunks(report)
    begin, end = chunks[0]["begin"], chunks[-1]["begin"] + chunks[-1]["seconds"]
    lanes = lane_spans(traces, begin, end)
    if not lanes:
        return None
    unit, factor = ("ms", 1e3) if end - begin < 10 else ("s", 1.0)
    panels = telemetry_panels(report["telemetry"], begin, end)
    gantt, below = 0.1 + 0.42 * len(lanes), 1.15  # inches
    height = gantt + 0.75 * len(panels) + below + 0.95
    numbers = " and ".join(str(chunk["index"]) for chunk in chunks)
    what = f"Timeline of {'chunks' if len(chunks) > 1 else 'chunk'} {numbers}"
    figure = _figure(report, what, height)
    grid = figure.add_gridspec(
        1 + len(panels), 1, height_ratios=[gantt, *[0.62] * len(panels)], hspace=0.17,
        left=0.15, right=0.985, top=1 - 0.95 / height, bottom=below / height,
    )  # fmt: skip
    main = figure.add_subplot(grid[0])
    _gantt(main, lanes, begin, end, factor)
    every = [main]
    for index, (where, curves) in enumerate(panels.items()):
        every.append(figure.add_subplot(grid[index + 1]))
        _panel(every[-1], where, curves, begin, factor)
    for axes in every:
        axes.set_xlim(0, (end - begin) * factor)
        axes.tick_params(labelsize=8, labelbottom=axes is every[-1])
        for chunk in chunks:
            start = (chunk["begin"] - begin) * factor
            axes.axvline(start, color=_GREY, linestyle="--", linewidth=0.8)
            if axes is main:
                axes.text(start, -0.6, f" chunk {chunk['index']}", fontsize=8)
        _bare(axes)
    clocks = "; ranks by their hosts' clocks" if len(traces) > 1 else ""
    every[-1].set_xlabel(f"{unit} since chunk {chunks[0]['index']} began{clocks}", fontsize=9)
    spans = [span for lane in lanes.values() for span in lane]
    outer = dict.fromkeys(name for name, part, *_ in spans if not part)
    inner = dict.fromkeys(part for _, part, *_ in spans if part)
    _legend(figure, outer, above=0.24 if inner else 0.0)
    if inner:
        _legend(figure, inner)
    return figure


def _gantt(
    axes: Axes, lanes: Mapping[str, Sequence[Span]], begin: float, end: float, factor: float
) -> None:
    """Draw a row per lane: stages with their names, and their parts below."""
    for row, spans in enumerate(lanes.values()):
        split = any(part for _, part, *_ in spans)
        for inner, top, tall in ((False, -0.42, 0.5 if split else 0.7), (True, 0.1, 0.3)):
            drawn = [span for span in spans if bool(span[1]) == inner]
            axes.broken_barh(
                [((first - begin) * factor, (last - first) * factor) for *_, first, last in drawn],
                (row + top, tall),
                facecolors=[colour_of(part or name) for name, part, *_ in drawn],
                edgecolor="white",
                linewidth=0.0 if inner else 0.4,
            )
        for name, part, first, last in spans:
            room = (last - first) / (end - begin) * 0.83 * _WIDTH
            if not part and room > _CHARACTER * (len(name) + 1):
                x, y = ((first + last) / 2 - begin) * factor, row - (0.17 if split else 0.07)
                axes.text(x, y, name, color=ink_on(colour_of(name)), **_CENTRED)
    axes.set_yticks(range(len(lanes)), list(lanes))
    axes.set_ylim(len(lanes) - 0.45, -0.55)


def _panel(
    axes: Axes, where: str, curves: Mapping[str, Sequence[Curve]], begin: float, factor: float
) -> None:
    """Draw what shares a unit: a colour per quantity, a line per GPU."""
    for number, (name, lines) in enumerate(curves.items()):
        for index, (times, values) in enumerate(lines):
            xs = [(t - begin) * factor for t in times]
            label = name if index == 0 else None
            style: dict[str, Any] = {"marker": ".", "markersize": 3, "linewidth": 1}
            style |= {"alpha": 1.0 if len(lines) == 1 else 0.5, "label": label}
            axes.plot(xs, values, f"C{number}", **style)
    device, unit = where.split(", ")
    only = next(iter(curves)) if len(curves) == 1 else ""
    count = max(map(len, curves.values()))
    device = f"{count} GPUs" if device == "GPU" and count > 1 else device
    text = f"{device}{':' * bool(only)}\n{only}\n{unit}" if only else f"{device}\n{unit}"
    axes.set_ylabel(text, fontsize=_SMALL, rotation=0, ha="right", va="center", labelpad=8)
    axes.set_ylim(0, 105 if unit == "%" else 1.15 * axes.get_ylim()[1])
    axes.grid(visible=True, alpha=0.25)
    if not only:
        axes.legend(fontsize=7, loc="best", ncols=3, framealpha=0.8, borderpad=0.2)


def _figure(report: Json, what: str, height: float) -> Figure:
    """Create an empty figure with its title: what, of which model; on what hardware."""
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI)
    FigureCanvasAgg(figure)
    settings = settings_line(report)
    joined = f"{what}: {settings}"
    lines = [joined] if len(joined) <= _TITLE else [what, settings]
    y = 1 - 0.12 / height
    figure.text(0.5, y, "\n".join(lines), ha="center", va="top", fontsize=10)
    y -= 0.19 * len(lines) / height
    figure.text(0.5, y, hardware_line(report), ha="center", va="top", fontsize=8, color=_GREY)
    return figure


def _legend(figure: Figure, names: Collection[str], *, above: float = 0.0) -> None:
    """Label colours at the lower edge, or ``above`` inches above it."""
    place = 0.5, above / figure.get_figheight()
    style: dict[str, Any] = {"ncols": _columns(names), "fontsize": 8, "columnspacing": 1.4}
    patches = _patches(names)
    figure.legend(handles=patches, loc="lower center", bbox_to_anchor=place, frameon=False, **style)


def _columns(names: Collection[str]) -> int:
    """Compute how many legend entries fit next to each other."""
    whole = sum(0.5 + 0.072 * len(name) for name in names)  # inches
    return max(1, min(8, int(_WIDTH * len(names) / whole))) if names else 1


def _patches(names: Iterable[str]) -> list[Patch]:
    return [Patch(facecolor=colour_of(n), edgecolor=_LIGHT, label=n) for n in names]


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
