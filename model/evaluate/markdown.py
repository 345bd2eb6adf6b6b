"""Formats the report of ``livetalk evaluate``."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .evaluation import WHOLE
from .judge import MEASURES
from .report import ALL, COLLAPSED, GROUPS

WANTED: Mapping[str, tuple[float | None, float | None]] = MappingProxyType(
    {
        "whole.mouth": (0.8, None),
        "whole.mouth_without_loudness": (0.6, None),
        "whole.mouth_shifted_worst": (None, 0.15),
        "whole.blink_ratio": (0.5, 2.0),
        "whole.mean_frame_away": (None, 5.0),
        "whole.worst_away": (None, 8.0),
        "whole.picture_db_change": (-1.0, 1.0),
        "mean.sharpness": (0.92, 1.08),
        "vae.picture_db": (28.0, None),
        "contraction.all": (None, 1.0),
    }
)
"""Required ranges for the demo's model: from, to."""
_DRIFTING = (
    "picture_db", "sharpness", "saturation", "lightness", "contrast", "away", "from_first",
    "identity", "background", "motion", "seam", "mouth_error", "lips",
)  # fmt: skip


def markdown(report: Mapping[str, Any], picture: str) -> str:
    """Write the report.

    Args:
        report: As in the JSON.
        picture: File name of the plot.
    """
    return "\n".join(_lines(report, picture)) + "\n"


def goals(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what a model must reach: measure, value, and required range.

    The value is with colour correction, unless streams were made only without it.
    """
    for name, ends in WANTED.items():
        group, measure = name.split(".")
        if group == "vae":
            values = [run["vae"][measure] for run in model["runs"]]
            shown = ", ".join("–" if value is None else _number(value) for value in values)
            yield f"VAE {measure}", shown, _range(ends)
        else:
            title = "contraction" if group == "contraction" else measure
            summary = model["summary"]
            first = next(iter(summary.values()))
            yield title, _cell(summary.get("on", first)[group][measure]), _range(ends)


def _lines(report: Mapping[str, Any], picture: str) -> Iterator[str]:
    data, settings, where = report["data"], report["settings"], report["machine"]
    models = report["models"]
    yield "# How well a model talks, and whether it drifts"
    yield ""
    names = ", ".join(f"{name}: {_names(model)}" for name, model in models.items())
    weights = " Random weights: these numbers are meaningless." if _random(models) else ""
    yield (
        f"{names}.{weights} {settings['streams']} streams a run, of {settings['chunks']} chunks "
        f"({settings['seconds']:.0f} s), {settings['steps']} steps a chunk, "
        f"{data['size'][0]}x{data['size'][1]}, {data['split']} split, speech by {data['speech']}, "
        + ("clips drawn for this evaluation." if data["folder"] is None else "given clips.")
    )
    yield ""
    yield "```"
    yield report["command"]
    yield "```"
    yield ""
    yield f"{where['gpu'] or where['cpu']}, torch {where['torch']}, commit {where['commit']}."
    yield ""
    yield f"![measures by chunk]({picture})"
    yield ""
    yield (
        "Brackets hold 95 % intervals (Student's) over the streams, or over the runs where there "
        "are several. *on* and *off* say whether colours are corrected. *wanted* is what the "
        "demo's model has to reach."
    )
    for name, model in models.items():
        yield ""
        yield f"## {name}"
        yield from _model(model)
    if report["differences"] is not None:
        yield ""
        yield "## this minus against, stream by stream; lambda: their ratio"
        yield from _tables(report["differences"], wanted=False)


def _random(models: Mapping[str, Any]) -> bool:
    return any(run["random_weights"] for model in models.values() for run in model["runs"])


def _names(model: Mapping[str, Any]) -> str:
    return ", ".join(f"`{run['model']}`" for run in model["runs"])


def _model(model: Mapping[str, Any]) -> Iterator[str]:
    for run in model["runs"]:
        vae = run["vae"]
        if vae["clips"]:
            yield ""
            yield (
                f"VAE of `{run['model']}` alone, on {vae['clips']:.0f} held-out clips: "
                f"{vae['picture_db']:.2f} dB (wanted: {_range(WANTED['vae.picture_db'])}), "
                f"{vae['mouth_db']:.2f} dB around the mouth, sharpness {vae['sharpness']:.3f} of "
                "the truth's."
            )
    lost = [s["collapsed_in_chunk"] for s in model["streams"] if s["collapsed_in_chunk"]]
    yield ""
    yield (
        f"Streams whose picture was lost (a chunk further than {COLLAPSED:g} from the portrait): "
        f"{len(lost)} of {len(model['streams'])}"
        + (f", the first in chunk {min(lost)}." if lost else ".")
    )
    yield from _tables(model["summary"], wanted=True)


def _tables(summary: Mapping[str, Any], *, wanted: bool) -> Iterator[str]:
    columns, sides = list(summary), list(summary.values())
    for title, group, words in (
        ("Whole streams", "whole", WHOLE),
        ("Mean of the chunks", "mean", MEASURES),
    ):
        goal = " wanted |" if wanted else ""
        yield ""
        yield f"| {title} | {' | '.join(columns)} |{goal} what |"
        yield "|---" * (len(columns) + 2 + wanted) + "|"
        for name, what in words.items():
            if name not in sides[0][group]:
                continue
            numbers = " | ".join(_cell(side[group][name]) for side in sides)
            goal = f" {_range(WANTED.get(f'{group}.{name}'))} |" if wanted else ""
            yield f"| {name} | {numbers} |{goal} {what} |"
    yield ""
    titles = [f"{group}, {column}" for group in ("change", "slope") for column in columns]
    yield f"| Drift | {' | '.join(titles)} |"
    yield "|---" * (len(titles) + 1) + "|"
    for name in _DRIFTING:
        cells = [_cell(side[group][name]) for group in ("change", "slope") for side in sides]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield f"Change: {GROUPS['change']}. Slope: {GROUPS['slope']}."
    if any(entry["count"] for side in sides for entry in side["contraction"].values()):
        yield ""
        yield f"| Disturbed | {' | '.join(f'lambda, {column}' for column in columns)} |"
        yield "|---" * (len(columns) + 1) + "|"
        for name in sides[0]["contraction"]:
            shown = f"{name} (wanted: {_range(WANTED['contraction.all'])})"
            cells = [_cell(side["contraction"][name]) for side in sides]
            yield f"| {shown if wanted and name == ALL else name} | {' | '.join(cells)} |"
        yield ""
        yield f"Lambda: {GROUPS['contraction']}."


def _cell(entry: Mapping[str, Any]) -> str:
    """Format an estimate: ``0.81 [0.78, 0.84]``."""
    if entry["mean"] is None:
        return "–"
    ends = "" if entry["low"] is None else f" [{_number(entry['low'])}, {_number(entry['high'])}]"
    return f"{_number(entry['mean'])}{ends}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _range(ends: tuple[float | None, float | None] | None) -> str:
    if ends is None:
        return ""
    low, high = ends
    if low is None or high is None:
        return f"≤ {high:g}" if low is None else f"≥ {low:g}"
    return f"{low:g} to {high:g}"
