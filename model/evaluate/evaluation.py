"""Makes and judges one model's streams."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..avatar import Avatar
from ..config import CHUNK_FRAMES, NEW_FRAMES
from ..pipeline import Pipeline
from ..stream.chunk import StreamOptions, from_uint8, to_uint8
from ..train.data.clips import Clips
from ..train.data.synthetic import TRUTH
from ..train.faces.identity import Identity
from ..train.faces.mouth import FPS
from .judge import Judge, chunk_measures
from .models import Model
from .pictures import Regions, decibels, edges
from .recovery import BEGIN, KINDS, Recovery, recover
from .scripts import Script, portrait_of
from .series import best_lag, correlation, count_closings, partial_correlation, shifted_correlations
from .streams import make_stream

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = dict[str, float | None]

CORRECTIONS: Mapping[str, float] = {"on": 1.0, "off": 0.0}
"""Strength of the colour correction with which a stream is made, by name."""
HALF_MINUTE = round(30 * FPS / NEW_FRAMES)
"""Half a minute, in chunks."""
_PEAK = 95  # percentile of a wide-open mouth
_VAE_CLIPS = 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the evaluation, the same for every model.

    Attributes:
        seed: Noise seed of the first stream; the others count up from it.
        steps: Denoising steps per chunk.
        twins: Chunks after a disturbance; 0 to try none.
        corrections: Those of `CORRECTIONS` with which each stream is made.
    """

    seed: int = 9999
    steps: int = 4
    twins: int = 8
    corrections: Sequence[str] = tuple(CORRECTIONS)

    def first_twin(self, chunks: int) -> int:
        """Choose the chunk of a stream of ``chunks`` at which twins part."""
        return min(BEGIN, chunks // 2)

    def work(self, scripts: Sequence[Script]) -> int:
        """Count the chunks that one model has to make."""
        return sum(
            len(self.corrections) * (s.chunks + (1 + len(KINDS)) * self._after(s)) for s in scripts
        )

    def _after(self, script: Script) -> int:
        first = self.first_twin(script.chunks)
        return min(self.twins, script.chunks - first) if first else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A stream that was made and judged.

    Attributes:
        run: Index of the model among those of one recipe.
        script: The script of the stream.
        correction: ``on`` or ``off``.
        seed: Noise seed.
        chunks: Measure -> one value per chunk; names as in `judge.MEASURES`.
        whole: Measure -> value of the whole stream; names as in `WHOLE`.
        recoveries: Disturbed twins.
    """

    run: int
    script: Script
    correction: str
    seed: int
    chunks: Mapping[str, Floats]
    whole: Mapping[str, float | None]
    recoveries: Sequence[Recovery] = field(default_factory=tuple)


def evaluate_runs(
    runs: Sequence[Model],
    scripts: Sequence[Script],
    size: tuple[int, int],
    settings: Settings,
    advance: Callable[[], None],
) -> list[Judged]:
    """Evaluate all runs of one recipe, one after the other; arguments as in `evaluate`."""
    return [
        stream
        for number, model in enumerate(runs)
        for stream in evaluate(model, scripts, size, settings, advance, run=number)
    ]


def evaluate(
    model: Model,
    scripts: Sequence[Script],
    size: tuple[int, int],
    settings: Settings,
    advance: Callable[[], None] = lambda: None,
    *,
    run: int = 0,
) -> Iterator[Judged]:
    """Make and judge every script, with colour correction, without, or both.

    Args:
        model: The model.
        scripts: The streams.
        size: Pictures' (H, W).
        settings: Settings of the evaluation.
        advance: Called after every chunk that was made.
        run: Index of the model among those of one recipe.

    Raises:
        NumericsError: The model returns NaN or Inf.
    """
    for number, script in enumerate(scripts):
        avatar = model.avatar(portrait_of(script.person, size))
        judge = Judge(script.person, size)
        for correction in settings.corrections:
            options = StreamOptions(
                seed=settings.seed + number,
                steps=settings.steps,
                color_correction=CORRECTIONS[correction],
            )
            judge.begin()
            yield _judged(
                model.pipeline, avatar, judge, script, correction, options, settings, advance, run
            )


def _judged(
    pipeline: Pipeline,
    avatar: Avatar,
    judge: Judge,
    script: Script,
    correction: str,
    options: StreamOptions,
    settings: Settings,
    advance: Callable[[], None],
    run: int,
) -> Judged:
    parting = settings.first_twin(script.chunks)
    parts: dict[str, list[Floats]] = defaultdict(list)
    recoveries: list[Recovery] = []
    for chunk, made in enumerate(make_stream(pipeline, avatar, script.wave, options)):
        here = slice(chunk * NEW_FRAMES, (chunk + 1) * NEW_FRAMES)
        found = judge.judge(made.frames, script.opening[here], script.width[here])
        for name, values in found.items():
            parts[name].append(values)
        advance()
        if settings.twins and chunk == parting - 1:
            short = script.until(parting + settings.twins)
            recoveries = recover(
                pipeline, avatar, short, options, made, first=parting, advance=advance
            )
    frames = {name: np.concatenate(values) for name, values in parts.items()}
    return Judged(
        run=run,
        script=script,
        correction=correction,
        seed=options.seed,
        chunks=chunk_measures(frames, script.opening, script.width),
        whole=whole_measures(frames, script) | {"mean_frame_away": judge.mean_frame_away()},
        recoveries=recoveries,
    )


def whole_measures(frames: Mapping[str, Floats], script: Script) -> Numbers:
    """Compute the measures of a whole stream; names as in `WHOLE`.

    Args:
        frames: From `Judge.judge`.
        script: The script of the stream.
    """
    opening, true = frames["opening"], script.opening
    shifted = shifted_correlations(opening, true)
    blinks, true_blinks = (
        count_closings(values) for values in (frames["blink"], _column(script, "blink"))
    )
    minutes = len(opening) / FPS / 60
    lag = best_lag(opening, true)
    picture = chunk_means(frames["picture_db"])
    count = min(HALF_MINUTE, len(picture) // 2)
    return {
        "mouth": correlation(opening, true),
        "mouth_without_loudness": partial_correlation(opening, true, script.loudness),
        "mouth_shifted": None if not shifted else float(np.mean(shifted)),
        "mouth_shifted_worst": None if not shifted else float(np.abs(shifted).max()),
        "mouth_lag": None if lag is None else float(lag),
        "mouth_peaks": _ratio(*(float(np.percentile(values, _PEAK)) for values in (opening, true))),
        "loudness_alone": correlation(script.loudness, true),
        "width": correlation(frames["width"], script.width),
        "blinks": blinks / minutes,
        "true_blinks": true_blinks / minutes,
        "blink_ratio": _ratio(blinks, true_blinks),
        **{
            f"{name}_spread": _ratio(_spread(frames[name]), _spread(_column(script, name)))
            for name in ("gaze_x", "gaze_y", "sway_x", "sway_y", "roll")
        },
        "worst_away": float(frames["away"].max()),
        "picture_db_change": float(picture[len(picture) - count :].mean() - picture[:count].mean())
        if count
        else None,
    }


WHOLE: Mapping[str, str] = {
    "mouth": "correlation of mouth opening with the truth",
    "mouth_without_loudness": "the same with the effect of loudness removed from both",
    "mouth_shifted": "the same with sound shifted by 10 s and more, mean of 20 shifts",
    "mouth_shifted_worst": "largest of them",
    "mouth_lag": "frames by which the mouth lags",
    "mouth_peaks": "95th percentile of the opening relative to the truth",
    "loudness_alone": "correlation of loudness with the truth",
    "width": "correlation of mouth width with the truth",
    "blinks": "a minute",
    "true_blinks": "per minute, in the data",
    "blink_ratio": "blinks relative to the data",
    "gaze_x_spread": "standard deviation relative to the data",
    "gaze_y_spread": "likewise",
    "sway_x_spread": "likewise",
    "sway_y_spread": "likewise",
    "roll_spread": "likewise",
    "mean_frame_away": "mean CIEDE2000 of pixels between portrait and mean frame",
    "worst_away": "mean CIEDE2000 of pixels between portrait and worst frame",
    "picture_db_change": "mean picture dB, last half minute minus first",
}
"""Measures of a whole stream, and their meaning."""


def round_trip(pipeline: Pipeline, clips: Clips) -> Numbers:
    """Encode and decode held-out pictures: the best that the model could show.

    Args:
        pipeline: The model.
        clips: Drawn clips; the first chunk's frames of up to eight are used.

    Returns:
        ``picture_db``, ``mouth_db``, ``sharpness`` as for chunks; ``clips``. None if no clip has 33
        frames.
    """
    found: dict[str, list[float]] = {"picture_db": [], "mouth_db": [], "sharpness": []}
    for number, entry in enumerate(clips.index.clips):
        if entry.frames < CHUNK_FRAMES or len(found["sharpness"]) == _VAE_CLIPS:
            continue
        true = clips.frames(number)[:CHUNK_FRAMES]
        video = from_uint8(true.permute(3, 0, 1, 2)[None], torch.float32)
        with torch.inference_mode():
            coded = pipeline.vae.encode(video.to(pipeline.device, pipeline.dtype))
            made = to_uint8(pipeline.vae.decode(coded)[0]).cpu().numpy()
        regions = Regions.of(Identity.of(int(entry.facts["person"])), clips.index.size)
        seen = true.numpy()
        found["picture_db"].append(float(decibels(made, seen).mean()))
        found["mouth_db"].append(float(decibels(made, seen, regions.mouth).mean()))
        sharp = edges(made, regions.face).mean() / edges(seen, regions.face).mean()
        found["sharpness"].append(float(sharp))
    means = {name: float(np.mean(v)) if v else None for name, v in found.items()}
    return {**means, "clips": float(len(found["sharpness"]))}


def chunk_means(values_T: Floats) -> Floats:
    """Average each chunk, [K]."""
    return np.asarray(values_T.reshape(-1, NEW_FRAMES).mean(axis=1))


def _column(script: Script, name: str) -> Floats:
    return np.asarray(script.truth[:, TRUTH.index(name)], np.float64)


def _spread(values_T: Floats) -> float:
    """Compute the standard deviation of known values; 0 if there are none."""
    known = values_T[np.isfinite(values_T)]
    return float(known.std()) if len(known) else 0.0


def _ratio(one: float, other: float) -> float | None:
    return float(one / other) if other else None
