"""Pictures of a profile: which are drawn, that they say what they must, and what they show."""

import sys
from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from profile_samples import SAMPLES, sample_report, sample_traces

from livetalk_kernels.testing.trace import trace_problems
from livetalk_kernels.units import ms, percent
from livetalk_model.profile import plots
from livetalk_model.profile.plot_data import (
    breakdown_bars,
    colour_of,
    ink_on,
    lane_spans,
    telemetry_panels,
    usual_chunks,
)
from livetalk_model.profile.words import hardware_line, settings_line


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("kind", SAMPLES)
def test_pictures_for_which_there_is_data_are_drawn(kind, tmp_path):
    report = sample_report(kind)
    names = plots.draw_all(report, sample_traces(report), tmp_path / "new")
    expected = {"breakdown.png", "roofline.png", "timeline.png", "chunks.png"}
    assert set(names) == expected - ({"roofline.png"} if kind == "least" else set())
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(names)
    for name in names:
        with Image.open(tmp_path / "new" / name) as picture:
            assert picture.width == 1200 and 300 < picture.height < 2000
            dark = sum(picture.convert("L").histogram()[:128])
            assert dark > 2000  # pixels: something is on it


def test_no_timeline_without_ranges_in_the_chunks(tmp_path):
    report = sample_report("least")
    assert "timeline.png" not in plots.draw_all(report, [], tmp_path)
    report["chunks"][0]["begin"] += 1e6
    assert "timeline.png" not in plots.draw_all(report, sample_traces(report)[:0], tmp_path)


def test_no_global_state_of_pyplot_is_touched(tmp_path):
    before = sys.modules.get("matplotlib.pyplot")
    report = sample_report("least")
    plots.draw_all(report, sample_traces(report), tmp_path)
    assert sys.modules.get("matplotlib.pyplot") is before


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_picture_says_what_was_measured_where(kind):
    report = sample_report(kind)
    traces = sample_traces(report)
    figures = [
        plots._breakdown(report),
        plots._chunks(report),
        plots._timeline(report, traces),
        plots._roofline(report),
    ]
    for figure in figures:
        if figure is None:
            continue
        said = "\n".join(texts(figure))
        assert settings_line(report) in said and hardware_line(report) in said
        assert "random weights" in said
        assert "commit abc1234" in said and report["machine"]["torch"] in said


def test_the_breakdown_names_every_stage_and_part_with_ms_and_percent():
    report = sample_report("14b")
    said = " ".join(texts(plots._breakdown(report))).replace("\N{NO-BREAK SPACE}", " ")
    for row in report["summary"]["stages"]:
        assert f"{ms(row['p50'])}, {percent(row['share'])}" in said
        assert (row["part"] or row["stage"]) in said
    assert "unattributed" in said and "overlapped" in said and "ms per chunk" in said
    assert "beside: audio encoder" in said


def test_overlapped_work_is_hatched_and_in_no_sum():
    report = sample_report("14b")
    bars = breakdown_bars(report)
    assert [bar.name for bar in bars if bar.overlapped] == [
        row["name"] for row in report["summary"]["beside"]
    ]
    assert not any(name in bars[0].pieces for name in ("beside: audio encoder", "write frames"))
    assert sum(bars[0].pieces.values()) == pytest.approx(
        report["summary"]["chunk"]["p50"], rel=0.05
    )
    (axes,) = plots._breakdown(report).axes
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == len(report["summary"]["beside"])
    assert hatched[0].get_width() == pytest.approx(1e3 * report["summary"]["beside"][0]["p50"])


def test_rows_of_the_breakdown_do_not_cover_each_other():
    figure = plots._breakdown(sample_report("14b"))
    (axes,) = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().strip()]
    overlaps = [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
        if a.shrunk(0.9, 0.6).overlaps(b)
    ]
    assert not overlaps
    assert all(box.x1 < 1200 for box in boxes)


def test_points_lie_under_their_roofs_at_their_share():
    report = sample_report("14b")
    report["ops"].append(report["ops"][0] | {"flops": 0, "rate": 0.0, "op": "copy_only"})
    figure = plots._roofline(report)
    roofline, bars = figure.axes
    assert (roofline.get_xscale(), roofline.get_yscale()) == ("log", "log")
    points = {tuple(c.get_offsets()[0]) for c in roofline.collections if len(c.get_offsets()) == 1}
    for op in report["ops"]:
        if op["flops"]:
            assert (op["flops"] / op["bytes"], op["rate"]) in points
    lengths = sorted(patch.get_width() for patch in bars.patches)
    assert lengths == pytest.approx(sorted(100 * op["of_floor"] for op in report["ops"]))
    said = "\n".join(texts(figure))
    assert "float8_e4m3fn: 1.35 PFLOP/s" in said and "memory: 2.9 TB/s" in said
    assert "1 without FLOPs" in said and "FLOP per byte" in said and "FLOP/s" in said
    # The line from an FP8 op goes up to the FP8 roof.
    tops = {round(line[1][1] / 1e12) for c in roofline.collections if hasattr(c, "get_segments")
            for line in c.get_segments()}  # fmt: skip
    assert {710, 1350} <= tops


def test_chunks_show_warm_up_apart_percentiles_and_the_budget():
    report = sample_report("14b")
    figure = plots._chunks(report)
    said = "\n".join(texts(figure))
    spread = report["summary"]["chunk"]
    for text in ("warm-up", f"p50  {ms(spread['p50'])}", f"p95  {ms(spread['p95'])}"):
        assert text in said
    assert "real time  1,120 ms" in said
    heights = {line.get_ydata()[0] for line in figure.axes[0].lines}
    assert heights >= {spread["p50"], spread["p95"], 28 / 25}
    report["settings"]["fps"] = 1.0  # far above: said, not drawn to scale
    assert "real time  28,000 ms (above)" in "\n".join(texts(plots._chunks(report)))
    report["warmup"] = []
    assert "warm-up" not in "\n".join(texts(plots._chunks(report)))


def test_labels_of_lines_do_not_cover_each_other():
    report = sample_report("mid")
    report["summary"]["chunk"]["p95"] = report["summary"]["chunk"]["p50"] * 1.0001
    figure = plots._chunks(report)
    figure.canvas.draw()
    labels = [t for t in figure.axes[0].texts if "ms" in t.get_text()]
    tops = sorted(label.get_window_extent().y0 for label in labels)
    assert len(tops) == 3 and all(b - a > 12 for a, b in pairwise(tops))


def test_hundreds_of_chunks_are_drawn_too():
    figure = plots._chunks(sample_report("mid", chunks=300))
    assert len(figure.axes[0].get_xticks()) <= 31


def test_the_usual_chunk_is_shown_with_the_next():
    report = sample_report("14b")
    first, second = usual_chunks(report)
    assert second["index"] == first["index"] + 1
    middle = report["summary"]["chunk"]["p50"]
    nearest = min(report["chunks"][:-1], key=lambda c: abs(c["seconds"] - middle))
    assert first is nearest
    assert len(usual_chunks(sample_report("least"))) == 1


def test_lanes_of_the_timeline():
    report = sample_report("14b")
    traces = sample_traces(report)
    assert not [problem for trace in traces for problem in trace_problems(trace)]
    first, second = usual_chunks(report)
    begin, end = first["begin"], second["begin"] + second["seconds"]
    lanes = lane_spans(traces, begin, end)
    assert list(lanes) == [
        *("rank 0: main", "rank 0: beside", "rank 0: video", "rank 0: waiting"),
        *(f"rank {rank}: main" for rank in range(1, 8)),
    ]
    assert all(begin <= a <= b <= end for spans in lanes.values() for *_, a, b in spans)
    main = lanes["rank 0: main"]
    assert "chunk" not in {name for name, *_ in main}
    outer = [span for span in main if not span[1]]
    assert [name for name, *_ in outer].count("denoise") == 8  # four steps of two chunks
    seconds = sum(b - a for _, part, a, b in main if part == "communication")
    expected = sum(
        parts.get("communication", 0.0)
        for chunk in (first, second)
        for parts in chunk["stages"].values()
    )
    assert seconds == pytest.approx(expected, rel=1e-3)


def test_ranks_are_brought_together_by_the_time_of_day():
    report = sample_report("14b")
    traces = sample_traces(report)[:2]
    traces[1]["otherData"]["started"] = traces[0]["otherData"]["started"] + 5.0
    begin = traces[1]["traceEvents"][2]["ts"] / 1e6
    (name, *_), *_ = lane_spans(traces, begin + 4.9, begin + 5.1)["rank 1: main"]
    assert name == "audio K/V"  # its first stage


def test_telemetry_is_on_the_axis_of_the_lanes():
    report = sample_report("14b")
    figure = plots._timeline(report, sample_traces(report))
    gantt, *panels = figure.axes
    labels = [panel.get_ylabel() for panel in panels]
    assert len(panels) == 9 and labels[0] == "host\n%" and "8 GPUs:\npower\nW" in labels
    assert {panel.get_xlim() for panel in panels} == {gantt.get_xlim()}
    assert len({panel.get_position().x0 for panel in figure.axes}) == 1
    assert len(panels[labels.index("8 GPUs:\npower\nW")].lines) == 8 + 2  # and two chunks' begins
    first = usual_chunks(report)[0]
    curve = panels[1].lines[0]
    index = [t >= first["begin"] for t in report["telemetry"]["samples"]["t"]].index(True)
    t = (report["telemetry"]["samples"]["t"][index] - first["begin"]) * 1e3
    value = report["telemetry"]["samples"]["resident memory"][index] * 1e-9
    assert (t, value) in list(zip(curve.get_xdata(), curve.get_ydata(), strict=True))
    assert "ms since chunk" in panels[-1].get_xlabel()


def test_what_was_not_reported_has_no_panel():
    telemetry = {
        "period": 0.1,
        "units": {"CPU": "%", "CPU clock": "MHz", "GPU 0 slowed by": "bits"},
        "samples": {
            "t": [0.0, 0.1, 0.2, 9.0],
            "CPU": [None, 50.0, 60.0, 70.0],
            "CPU clock": [None] * 4,
            "GPU 0 slowed by": [4] * 4,
        },
    }
    assert telemetry_panels(telemetry, 0.0, 0.5) == {
        "host, %": {"CPU": [([0.1, 0.2], [50.0, 60.0])]}
    }
    assert telemetry_panels(None, 0.0, 1.0) == {}


def test_unknown_stages_have_a_colour_and_text_can_be_read_on_it():
    assert colour_of("something new") == colour_of("something new") != colour_of("denoise")
    assert (ink_on("#000000"), ink_on("#ffffff")) == ("white", "black")


def test_the_lines_above_name_all_that_changes_the_times():
    report = sample_report("14b")
    line = settings_line(report)
    for part in ("14b at 768x448", "bfloat16", "FP8 linears (approximate)", "8 ranks (ulysses 8"):
        assert part in line
    report["settings"] |= {"compiled": True, "reuse": False, "random_weights": False}
    line = settings_line(report)
    assert "torch.compile" in line and "published schedule" in line and "random" not in line
    assert "8 x NVIDIA H200, driver 580.65.06, CUDA 13.0" in hardware_line(report)
    report["settings"]["device"] = "cpu"  # on a machine that has a GPU
    assert "H200" not in hardware_line(report) and "8 threads a rank" in hardware_line(report)
    report["machine"]["commit"] = ""
    assert "commit unknown" in hardware_line(report)
