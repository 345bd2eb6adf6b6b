"""A profile of the tiny model: what its report and its trace say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import livetalk_kernels.runtime
import livetalk_model.profile
from livetalk_kernels.config import KernelConfig
from livetalk_kernels.errors import UserError
from livetalk_kernels.machine import machine
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.testing.processes import run_ranks
from livetalk_kernels.testing.trace import trace_problems
from livetalk_model.loading import ModelSource
from livetalk_model.profile.breakdown import ALL, GAPS, WHOLE
from livetalk_model.profile.engine import Plan, Profiler
from livetalk_model.profile.run import Length
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.stream.team import Team

SIZE = (48, 64)
STEPS, CHUNKS = 2, 3
TRACE_SCHEMA = Path(livetalk_kernels.runtime.__file__).with_name("trace.schema.json")
SCHEMA = Path(livetalk_model.profile.__file__).with_name("report.schema.json")
FACTS = {"command": ["livetalk", "profile"], "machine": machine()}


def source(**given: Any) -> ModelSource:
    choice = {"backend": KernelConfig(), "reuse": True} | given
    return ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32", **choice
    )


def plan(**given: Any) -> Plan:
    length = Length(warmup=1, chunks=CHUNKS)
    return Plan(model="tiny", length=length, options=StreamOptions(steps=STEPS), **given)


def say(head: str, text: str) -> None:
    """Nobody listens."""


def profile(team: Team | None = None, *, model: ModelSource | None = None, **given: Any) -> tuple:
    profiler = Profiler(model or source(), team or Team(), plan(**given), say)
    return profiler.lead(None, SIZE, FACTS)


@pytest.fixture(scope="module")
def made() -> tuple[dict, dict]:
    return profile()


def stages(report: Mapping[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in report["summary"]["stages"]:
        found.setdefault(row["stage"], set()).update({row["part"]} - {WHOLE})
    return found


def test_the_report_is_as_its_schema_says(made):
    report, _ = made
    jsonschema.validate(
        json.loads(json.dumps(report, allow_nan=False)), json.loads(SCHEMA.read_text())
    )


def test_the_critical_path_adds_up(made):
    report, _ = made
    assert len(report["warmup"]) == 1 and len(report["chunks"]) == CHUNKS and report["complete"]
    for chunk in report["chunks"]:
        inside = sum(sum(parts.values()) for parts in chunk["stages"].values())
        assert inside + chunk["unattributed"] == pytest.approx(chunk["seconds"])
        assert all(seconds >= 0 for parts in chunk["stages"].values() for seconds in parts.values())
    summary = report["summary"]
    shares = sum(row["share"] for row in summary["stages"] if row["part"] == WHOLE)
    assert shares + summary["unattributed"] == pytest.approx(1)
    assert 0 <= summary["unattributed"] < 0.15
    assert summary["step"]["count"] == CHUNKS * STEPS
    assert summary["fps"] == pytest.approx(28 * CHUNKS / summary["wall"])


def test_stages_have_the_parts_that_run_within_them(made):
    report, _ = made
    found = stages(report)
    assert found["denoise"] == {"norms", "linears", "attention", "cross", "activations", GAPS}
    assert found["decode"] >= {"convolutions", "norms", "attention", GAPS}
    assert found["colour"] == set()
    assert report["chunks"][0]["stages"]["colour"].keys() == {ALL}
    beside = {row["name"].partition(":")[0] for row in report["summary"]["beside"]}
    assert beside == {"video", "host"}  # the frames are handed over while the next are made


def test_ops_are_counted_and_held_to_the_floor(made):
    report, _ = made
    layers = 4
    denoise = [row for row in report["ops"] if row["stage"] == "denoise"]
    calls = {
        op: sum(r["calls"] for r in denoise if r["op"] == op)
        for op in ("chunk_attention", "linear")
    }
    assert calls["chunk_attention"] == STEPS * layers
    assert calls["linear"] == STEPS * layers * 8  # qkv, o; q, o; q, o; two of the feed-forward
    for row in report["ops"]:
        limit = report["limits"]["float32"]
        floor = max(row["flops"] / limit["rate"], row["bytes"] / limit["bandwidth"])
        assert row["floor"] == pytest.approx(floor)
        assert row["rate"] == pytest.approx(row["flops"] / row["seconds"])
    total = sum(row["calls"] * row["seconds"] for row in denoise)
    whole = next(
        r for r in report["summary"]["stages"] if (r["stage"], r["part"]) == ("denoise", WHOLE)
    )
    assert total <= whole["mean"] * 1.001


def test_memory_is_reported_by_kind(made):
    memory = made[0]["memory"]
    kept = memory["weights"]["total"] + memory["caches"]
    assert memory["peak"] == kept + memory["activations"] and memory["activations"] > 0
    assert memory["predicted"]["weights"]["total"] == pytest.approx(
        memory["weights"]["total"], rel=0.02
    )


def test_the_trace_is_whole_and_arrows_lead_to_the_video(made):
    _, trace = made
    assert trace_problems(json.loads(json.dumps(trace))) == []
    one_of_each = {(e["ph"], e["name"]): e for e in trace["traceEvents"]}  # all would take long
    small = json.loads(json.dumps(trace | {"traceEvents": list(one_of_each.values())}))
    jsonschema.validate(small, json.loads(TRACE_SCHEMA.read_text()))
    kinds = [event["ph"] for event in trace["traceEvents"]]
    assert kinds.count("s") == kinds.count("f") > 0
    assert "C" in kinds  # telemetry
    args = [e["args"] for e in trace["traceEvents"] if e["name"] == "chunk_attention"]
    assert all(about["part"] == "attention" and about["flops"] > 0 for about in args)


def test_recording_costs_little(made):
    tracing = made[0]["tracing"]
    assert tracing["events"] > 100 and 0 < tracing["share"] < 0.1


def test_stages_alone_without_ops_and_without_a_video():
    report, _ = profile(ops=False, video=False)
    assert stages(report)["denoise"] == set() and report["ops"] == []
    assert "write" not in stages(report) and report["summary"]["beside"] == []


def test_the_published_schedule_and_fp8_are_profiled_as_well():
    published, _ = profile(model=source(reuse=False), video=False)
    assert published["settings"]["reuse"] is False
    assert stages(published)["denoise"] >= {"linears", "attention"}
    fp8, _ = profile(model=source(precision="fp8"), video=False)
    assert fp8["settings"]["approximate"] == ["FP8 linears"]
    products = [row for row in fp8["ops"] if row["op"] == "fp8_gemm"]
    assert products and all(row["part"] == "linears" for row in products)
    assert set(fp8["limits"]) >= {"float32", "float8_e4m3fn"}


def test_lengths_that_measure_nothing_are_refused():
    with pytest.raises(UserError, match="--chunks 0"):
        Length(warmup=1, chunks=0)
    with pytest.raises(UserError, match="--warmup 0"):
        Length(warmup=0, chunks=1)


class Pace:
    """Asks for a number of chunks, and records what it is sent."""

    def __init__(self, chunks: int) -> None:
        self.left, self.settings, self.received = chunks, None, []

    def ready(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def wait(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def report(self, chunk: Mapping[str, Any]) -> None:
        self.received.append(chunk)


def test_chunks_are_made_one_by_one_when_asked_for():
    pace = Pace(2)
    Profiler(source(), Team(), plan(video=False), say).pace(None, SIZE, pace)
    assert pace.settings["model"] == "tiny" and len(pace.received) == 2
    for chunk in pace.received:
        assert chunk["seconds"] > 0 and chunk["stages"]["denoise"]


def on_ranks(world: Communicator) -> str:
    team = Team(world)
    profiler = Profiler(source(), team, plan(video=False), say)
    if team.leads:
        report, _ = profiler.lead(None, (96, 80), FACTS)
        return json.dumps(report)
    traces: list[dict] = []
    profiler.follow(FACTS, traces.append)
    assert trace_problems(json.loads(json.dumps(traces[0]))) == []
    return ""


def test_every_rank_reports_its_part_and_communication_is_seen():
    report = json.loads(run_ranks(on_ranks, 2, timeout=200)[0])
    assert report["settings"]["ranks"]["world"] == 2
    assert (
        "communication" in stages(report)["denoise"] and "communication" in stages(report)["decode"]
    )
    first, second = report["ranks"]
    assert (first["rank"], second["rank"]) == (0, 1)
    assert second["chunk"]["count"] == CHUNKS and second["traffic"]["all_to_all"]["bytes"] > 0
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
