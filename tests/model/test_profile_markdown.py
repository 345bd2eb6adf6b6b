"""The report for people, and the schemas of what is for machines."""

import copy
import json
import re
from importlib.resources import files

import pytest
import torch
from jsonschema import Draft202012Validator
from profile_samples import SAMPLES, sample_report, sample_traces

from livetalk_kernels.bench.telemetry import Telemetry
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_model.profile.markdown import report_markdown

REPORT = json.loads(files("livetalk_model.profile").joinpath("report.schema.json").read_text())
TRACE = json.loads(files("livetalk_kernels.runtime").joinpath("trace.schema.json").read_text())


def problems(schema: dict, value: dict) -> list[str]:
    value = json.loads(json.dumps(value, allow_nan=False))
    errors = Draft202012Validator(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            found.append([re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()])
    return found


@pytest.mark.parametrize("kind", SAMPLES)
def test_tables_are_whole_and_pictures_are_those_that_exist(kind):
    report = sample_report(kind)
    report["files"] += ["breakdown.png", "chunks.png"]
    text = report_markdown(report)
    assert text.count("\n# ") == 0 and text.startswith("# Profile: ") and text.endswith("\n")
    for table in tables(text):
        assert len({len(row) for row in table}) == 1 and len(table) > 2
    assert re.findall(r"!\[[^]]+\]\(([^)]+)\)", text) == ["breakdown.png", "chunks.png"]
    assert "None" not in text and "nan" not in text
    assert "**Weights are random**" in text


def test_the_headline_and_the_conditions_are_said():
    report = sample_report("14b")
    report["command"] = ["livetalk", "profile", "--avatar", "my file"]
    text = report_markdown(report)
    summary = report["summary"]
    assert f"**{summary['fps']:.2f} frames/s**" in text and "(p99)" in text
    assert "livetalk profile --avatar 'my file'\n" in text  # as it can be typed
    assert "**Approximate**: fp8_gemm=cutlass" in text
    assert "stand still" not in text
    assert "Recording cost 0.4 %" in text and "cut short" not in text
    report["complete"] = False
    report["settings"]["random_weights"] = False
    report["summary"]["underrun"] = 1.5
    text = report_markdown(report)
    assert "cut short" in text and "random" not in text and "stand still for 1,500 ms" in text


def test_stages_have_their_parts_beneath_and_shares_add_up():
    report = sample_report("14b")
    (table,) = [t for t in tables(report_markdown(report)) if t[0][0].strip() == "stage"]
    names = [row[0] for row in table[2:]]
    assert names[:4] == [
        " audio K/V ",
        " denoise ",
        " \N{EM SPACE}linears ",
        " \N{EM SPACE}attention ",
    ]
    shares = {row[0]: float(row[-1].strip(" %")) for row in table[2:] if row[-1].strip()}
    whole = sum(share for name, share in shares.items() if "\N{EM SPACE}" not in name)
    assert whole == pytest.approx(100, abs=2)  # per cent, rounded
    assert " unattributed " in shares


def test_ops_say_what_they_reached():
    text = report_markdown(sample_report("14b"))
    (table,) = [t for t in tables(text) if any("TFLOP/s" in cell for cell in t[0])]
    row = next(row for row in table if "N15360" in row[1])
    assert [cell.strip() for cell in row[-3:]] == ["972", "531", "72 %, compute"]
    assert "float8_e4m3fn 1,350 TFLOP/s, 2,900 GB/s" in text
    report = sample_report("mid")
    report["ops"] *= 3
    assert "And 12 more, " in report_markdown(report)


def test_telemetry_in_brief_with_reasons_in_words():
    text = report_markdown(sample_report("14b"))
    (row,) = re.findall(r"\| GPU 0 slowed by \| (.*?) \|", text)
    assert re.fullmatch(r"power cap \d+ %", row)
    assert re.search(r"GPU 7 power \| \d{3} W \| \d{3} W \| \d{3} W", text)
    report = sample_report("mid")
    report["telemetry"]["samples"]["CPU clock"] = [None] * len(report["telemetry"]["samples"]["t"])
    assert "| CPU clock | not reported |" in report_markdown(report)


def test_what_was_not_measured_is_listed():
    text = report_markdown(sample_report("least"))
    lacking = text.partition("Not measured:")[2]
    for what in ("inside a CUDA graph", "memory of activations", "telemetry", "tails", "quality"):
        assert what in lacking
    assert "## Ops" not in text and "## Ranks" not in text and "## Telemetry" not in text
    report = sample_report("14b")
    for name in [n for n in report["telemetry"]["units"] if n.startswith("GPU")]:
        del report["telemetry"]["units"][name], report["telemetry"]["samples"][name]
    assert "NVML does not report them" in report_markdown(report)
    report = sample_report("mid", chunks=20)
    report["settings"]["random_weights"] = False
    assert "Not measured" not in report_markdown(report)


def test_bars_in_names_do_not_break_a_table():
    report = sample_report("mid")
    report["summary"]["beside"][0]["name"] = "a|b: c"
    assert "a\\|b: c" in report_markdown(report)


@pytest.mark.parametrize("schema", [REPORT, TRACE], ids=["report", "trace"])
def test_schemas_are_valid_and_describe_every_field(schema):
    Draft202012Validator.check_schema(schema)
    lacking = []

    def look(entry: dict, path: str) -> None:
        for name, field in entry.get("properties", {}).items():
            if not field.get("description", "").strip():
                lacking.append(f"{path}/{name}")
        children = {**entry.get("properties", {}), **entry.get("$defs", {})}
        for key in ("items", "additionalProperties"):
            if isinstance(entry.get(key), dict):
                children[key] = entry[key]
        for name, child in children.items():
            look(child, f"{path}/{name}")

    look(schema, "")
    assert not lacking


@pytest.mark.parametrize("kind", SAMPLES)
def test_reports_and_traces_follow_their_schemas(kind):
    report = sample_report(kind)
    assert not problems(REPORT, report)
    for trace in sample_traces(report)[:2]:
        assert not problems(TRACE, trace)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(schema="livetalk/profile/2"),
        lambda r: r.update(extra=1),
        lambda r: r["summary"].pop("unattributed"),
        lambda r: r["chunks"].clear(),
        lambda r: r["chunks"][0].update(seconds=-1.0),
        lambda r: r["chunks"][0]["stages"]["denoise"].update(linears="fast"),
        lambda r: r["ops"][0].update(bound="luck"),
        lambda r: r["telemetry"]["units"].update(CPU="percent"),
        lambda r: r["settings"].update(size=[128]),
        lambda r: r["machine"].pop("commit"),
        lambda r: r["ranks"][0]["traffic"].update(halo={"bytes": 3}),
    ],
)
def test_the_schema_of_reports_sees_what_is_wrong(spoil):
    report = copy.deepcopy(sample_report("mid"))
    spoil(report)
    assert problems(REPORT, report)


def recorded() -> dict:
    """A trace of a real timeline, with an arrow and counters."""
    cpu = torch.device("cpu")
    with Telemetry([cpu], period=0.005) as telemetry:
        timeline = Timeline(cpu, rank=2, capacity=99)
        with timeline.range("chunk"), timeline.range("denoise"):
            with timeline.host_range("write"):
                flow = timeline.flow("frames")
            with timeline.range("add_norm", about={"part": "norms", "op": "add_norm", "flops": 7}):
                pass
        with timeline.range("write frames", "video"):
            flow.arrive("video")
    trace = timeline.trace({"command": ["livetalk"], "machine": {"cpu": "x"}})
    trace["traceEvents"] += telemetry.counters(timeline.origin_ns, 2)
    return trace


def test_the_trace_of_a_timeline_follows_its_schema():
    trace = recorded()
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X", "s", "f", "C"}
    assert not problems(TRACE, trace)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e["X"].pop("dur"),
        lambda e: e["X"].update(ts=-1),
        lambda e: e["C"]["args"].update(value=None),
        lambda e: e["s"].pop("id"),
        lambda e: e["M"].update(name="thread_colour"),
        lambda e: e["X"].update(ph="Q"),
        lambda e: e["X"].update(name=" "),
    ],
)
def test_the_schema_of_traces_sees_what_is_wrong(spoil):
    trace = recorded()
    spoil({event["ph"]: event for event in trace["traceEvents"]})
    assert problems(TRACE, trace)
