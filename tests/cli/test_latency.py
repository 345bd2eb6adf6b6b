"""The latency report of a stream that was stopped before its first chunk was complete."""

import json

import numpy as np
import pytest
from PIL import Image

from livetalk_kernels.neighbours import CpuShares
from livetalk_model import load_pipeline
from livetalk_model.cli import common
from livetalk_model.cli.latency import latency_report, print_latency

CROWDED = CpuShares(usable=2, own=0.5, others=1.5, switches=7, seconds=1.0)


def test_report_before_the_first_chunk_is_complete(capsys):
    pipeline = load_pipeline(preset="tiny", device="cpu")
    avatar = pipeline.prepare(Image.new("RGB", (64, 64), (90, 120, 80)), size=(32, 48))
    with pipeline.session(avatar) as session:
        next(session.push(np.zeros(17920, np.float32)))
        report = latency_report(
            pipeline, session, size=avatar.size, avatar_seconds=0.25, cpu=CROWDED
        )
    assert report["frames"] > 0 and report["chunks"]["count"] == 0
    assert report["chunks"]["p50"] is report["chunks"]["p95"] is None
    assert report["load"]["avatar"] == 0.25
    assert report["load"]["total"] == pytest.approx(pipeline.load_times.total + 0.25)
    common.print_json(report)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["frames"] > 0
    print_latency(report, session.stats, common.console())
    shown = capsys.readouterr().out
    assert (
        "avatar 250 ms" in shown
        and "audio encoder" in shown
        and "0 chunks" in shown
        and "latents to frames" in shown
    )
    assert "0.5 of 2" in shown and "other programs 1.5, 7 involuntary switches" in shown
    assert "stop the others" in shown
    assert "nan" not in shown and max(map(len, shown.splitlines())) <= 80


def test_what_is_no_json_is_a_bug():
    with pytest.raises(ValueError, match="not JSON compliant"):
        common.print_json({"x": float("nan")})
