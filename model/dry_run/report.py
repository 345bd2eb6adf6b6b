"""Reports the memory of a running stream next to its prediction."""

from typing import Any

from ..avatar import Avatar
from ..loading import ModelSource
from ..pipeline import Pipeline
from ..stream.session import Session
from .measure import cache_bytes, weight_bytes
from .memory import describe, predict


def memory_report(
    source: ModelSource, pipeline: Pipeline, session: Session, avatar: Avatar
) -> dict[str, Any]:
    """Measure weights and caches of an open session, and add the prediction; in bytes.

    The prediction is for the backends that ``auto`` prefers; it is None for the published schedule,
    on several ranks, and with CUDA graphs.
    """
    weights = weight_bytes(pipeline)
    report: dict[str, Any] = {
        "measured": {
            "weights": {**weights, "total": sum(weights.values())},
            "caches": cache_bytes(pipeline, session.production),
        },
        "predicted": None,
    }
    if pipeline.reuse and pipeline.team.size == 1 and not pipeline.graphed:
        model = describe(
            source,
            pipeline.dit.config,
            pipeline.vae.config,
            size=avatar.size,
            steps=session.options.steps,
            text_rows=len(avatar.context),
        )
        report["predicted"] = predict(model).as_json()
    return report
