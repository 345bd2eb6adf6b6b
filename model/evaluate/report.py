"""Summarises streams: means with intervals, drift, contraction, and two models compared."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from livetalk_kernels.machine import machine
from livetalk_kernels.precision import dtype_name

from ..config import NEW_FRAMES
from ..train.data.clips import Clips
from ..train.faces.mouth import FPS
from .evaluation import CORRECTIONS, Judged, round_trip
from .intervals import Estimate, estimate
from .models import Model
from .recovery import KINDS
from .series import change, slope

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Mapping[str, Mapping[str, float | None]]
"""Group -> name -> value of a stream."""

SCHEMA = "livetalk/evaluate/2"
GROUPS: Mapping[str, str] = {
    "mean": "mean over the chunks",
    "whole": "value of the whole stream",
    "change": "mean of the last minute minus that of the first, at most half each",
    "slope": "Theil-Sen, per minute",
    "contraction": "factor per chunk of a disturbance in the stream's past",
}
"""Groups of a stream's values, and their meaning."""
COLLAPSED = 10.0
"""CIEDE2000 of a chunk from the portrait, beyond which the picture is lost; the worst single frames
of drawn clips have 6."""
ALL = "all"
"""Name of the contraction over all disturbances."""
_MINUTE = round(60 * FPS / NEW_FRAMES)  # in chunks
_DIGITS = 5


def make_report(
    models: Mapping[str, Sequence[Model]],
    judged: Mapping[str, Sequence[Judged]],
    clips: Clips,
    *,
    drawn: bool = False,
) -> dict[str, Any]:
    """Assemble all findings as plain values.

    Args:
        models: ``this``, and possibly ``against``: a model, or several of one recipe.
        judged: The streams of each, in the same order.
        clips: The held-out clips.
        drawn: Whether they were drawn for this evaluation alone.
    """
    vaes: dict[str, Mapping[str, float | None]] = {}
    for run in (run for runs in models.values() for run in runs):
        if run.vae not in vaes:  # runs of one recipe share theirs, and a round trip takes seconds
            vaes[run.vae] = round_trip(run.pipeline, clips)
    ours, *others = judged.values()
    return {
        "schema": SCHEMA,
        "data": {
            "folder": None if drawn else clips.folder.absolute().name,
            "clips": len(clips),
            "size": list(clips.index.size),
            "seed": clips.index.settings.get("seed"),
            "split": clips.index.settings.get("split", "unknown"),
            "speech": clips.index.settings.get("speech", "unknown"),
        },
        "models": {
            name: {
                "runs": [_run_json(model, vaes[model.vae]) for model in runs],
                "summary": summary(judged[name]),
                "streams": [stream_json(stream) for stream in judged[name]],
            }
            for name, runs in models.items()
        },
        "differences": differences(ours, others[0]) if others else None,
        "machine": machine(),
    }


def without_chunks(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report without the many per-chunk values."""
    models = {
        name: {**model, "streams": [{**stream, "chunks": None} for stream in model["streams"]]}
        for name, model in report["models"].items()
    }
    return {**report, "models": models}


def _run_json(model: Model, alone: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        "model": model.name,
        "random_weights": model.pipeline.random,
        "dtype": dtype_name(model.pipeline.dtype),
        "vae": {name: _rounded(value) for name, value in alone.items()},
    }


def stream_numbers(judged: Judged) -> Numbers:
    """Compute all values of a stream, in `GROUPS`."""
    chunks = judged.chunks
    slopes = {name: slope(values) for name, values in chunks.items()}
    contractions = {twin.kind: twin.contraction for twin in judged.recoveries}
    return {
        "mean": {name: _mean(values) for name, values in chunks.items()},
        "whole": judged.whole,
        "change": {name: change(values, _MINUTE) for name, values in chunks.items()},
        "slope": {
            name: None if value is None else value * 60 * FPS / NEW_FRAMES
            for name, value in slopes.items()
        },
        "contraction": {**contractions, ALL: _geometric(list(contractions.values()))},
    }


def collapse(judged: Judged) -> int | None:
    """Find the first chunk, from 1, whose picture is lost; None if none is."""
    lost = np.flatnonzero(judged.chunks["away"] > COLLAPSED)
    return int(lost[0]) + 1 if len(lost) else None


def summary(streams: Sequence[Judged]) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute correction -> group -> name -> estimate over the streams, or over several runs."""
    return _by_correction(
        streams, lambda own: _estimates([(s.run, stream_numbers(s)) for s in own])
    )


def differences(ours: Sequence[Judged], others: Sequence[Judged]) -> dict[str, Any]:
    """Summarise each stream's difference between two models; for contractions, the ratio.

    Args:
        ours: Streams of one model.
        others: The same streams of the other model, in the same order.
    """
    pairs = {id(one): other for one, other in zip(ours, others, strict=True)}

    def paired(own: Sequence[Judged]) -> dict[str, dict[str, Any]]:
        return _estimates(
            [(one.run, _minus(stream_numbers(one), stream_numbers(pairs[id(one)]))) for one in own]
        )

    return _by_correction(ours, paired)


def stream_json(judged: Judged) -> dict[str, Any]:
    """Convert one stream to plain values, with one value per chunk."""
    script = judged.script
    return {
        "run": judged.run,
        "person": script.person.number,
        "voice": script.voice,
        "distinct_seconds": script.distinct / FPS,
        "color_correction": judged.correction,
        "seed": judged.seed,
        "collapsed_in_chunk": collapse(judged),
        "whole": {name: _rounded(value) for name, value in judged.whole.items()},
        "chunks": {
            name: [_rounded(value) for value in values.tolist()]
            for name, values in judged.chunks.items()
        },
        "recoveries": [
            {
                "kind": twin.kind,
                "contraction": _rounded(twin.contraction),
                "latents": [_rounded(value) for value in twin.latents],
                "levels": [_rounded(value) for value in twin.levels],
            }
            for twin in judged.recoveries
        ],
    }


def _by_correction(
    streams: Sequence[Judged], made_of: Callable[[Sequence[Judged]], dict[str, dict[str, Any]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        correction: made_of([s for s in streams if s.correction == correction])
        for correction in CORRECTIONS
        if any(stream.correction == correction for stream in streams)
    }


def _estimates(numbers: Sequence[tuple[int, Numbers]]) -> dict[str, dict[str, Any]]:
    """Estimate over streams; with several runs, over the mean of each run's streams.

    Streams of one run are more alike than two runs are, so more streams say no more about runs.
    """
    runs = sorted({run for run, _ in numbers})

    def over(group: str, name: str) -> Estimate:
        logarithmic = group == "contraction"
        values = [(run, entry[group].get(name)) for run, entry in numbers]
        units = [value for _, value in values]
        if len(runs) > 1:
            own = [[value for at, value in values if at == run] for run in runs]
            units = [estimate(of_run, logarithmic=logarithmic).mean for of_run in own]
        return estimate(units, logarithmic=logarithmic)

    names = {group: list(entries) for group, entries in numbers[0][1].items()}
    names["contraction"] = [*KINDS, ALL]
    return {group: {name: _shown(over(group, name)) for name in names[group]} for group in GROUPS}


def _minus(one: Numbers, other: Numbers) -> Numbers:
    def apart(group: str, a: float | None, b: float | None) -> float | None:
        if a is None or b is None:
            return None
        return a / b if group == "contraction" else a - b

    return {
        group: {name: apart(group, value, other[group].get(name)) for name, value in values.items()}
        for group, values in one.items()
    }


def _mean(values_K: Floats) -> float | None:
    return float(np.nanmean(values_K)) if np.isfinite(values_K).any() else None


def _geometric(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else None


def _shown(value: Estimate) -> dict[str, Any]:
    return {name: _rounded(number) for name, number in value.to_json().items()}


def _rounded(value: float | None) -> float | None:
    """Round to five significant digits; None for NaN, which JSON lacks."""
    if value is None or not np.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{_DIGITS}g}")
