"""``livetalk bench``: tables, CSV and JSON, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import refused

from livetalk_kernels.bench import runner, suite
from livetalk_kernels.errors import UserError
from livetalk_model.cli.main import main

PLOT = Path(__file__).resolve().parents[2] / "benchmarks/plot.py"
QUICK = ["--device", "cpu", "--dtype", "fp32", "--threads", "1", "--rounds", "2", "--no-compile"]
SMALL = ["--shape", "L=8,D=32"]

pytestmark = pytest.mark.usefixtures("small_machine")


def bench(*arguments: object) -> int:
    return main(["bench", *map(str, arguments)])


def test_table(capsys):
    threads = torch.get_num_threads()
    assert bench("add_norm", "rms_norm", *SMALL, *QUICK) == 0
    shown = capsys.readouterr()
    assert all(len(line.rstrip()) <= 80 for line in shown.out.splitlines())
    words = ("add_norm L=8,D=32", "rms_norm L=8", "eager", "floor", "torch", "commit", "trials")
    for word in (*words, "score: ", "x the best rival", "2 cases"):
        assert word in shown.out
    assert shown.out.count("interpreter") <= 4  # said once per op
    assert "[2/2] rms_norm" in shown.err
    assert torch.get_num_threads() == threads


def test_json_and_csv_of_a_sweep(tmp_path, capsys):
    files = tmp_path / "new/r.json", tmp_path / "r.csv"
    shape = ("--shape", "L=4,8,D=32:64:32", "--json", files[0], "--csv", files[1])
    assert bench("add_norm", *QUICK, *shape) == 0
    assert "add_norm L=4,D=32" in capsys.readouterr().out
    report = json.loads(files[0].read_text())
    assert report["machine"].keys() >= {"cpu", "gpu", "torch", "threads", "commit", "date", "time"}
    assert report["machine"]["threads"] == 1
    assert report["command"][:3] == ["livetalk", "bench", "add_norm"]
    assert report["complete"] and report["skipped"] == []
    assert report["schema"] == "livetalk/bench/2" and report["score"]["cases"] == 4
    names = [case["case"] for case in report["cases"]]
    assert names == ["L=4,D=32", "L=4,D=64", "L=8,D=32", "L=8,D=64"]
    for case in report["cases"]:
        rows = {row["backend"]: row for row in case["backends"]}
        assert rows["eager"]["time"]["p20"] <= rows["eager"]["time"]["p80"]
        assert case["standing"]["rival"] == "eager" and case["standing"]["ours"] == "cpu"
        assert rows["eager"]["timing"] == "clock" and len(rows["eager"]["trials"]) == 2
        assert rows["eager"]["time"]["count"] == 2 and rows["eager"]["gb_per_s"] > 0
        assert rows["triton"]["state"] == "left out" and rows["triton"]["time"] is None
        assert case["dims"]["B"] == 1 and case["floor"] > 0
    lines = list(csv.DictReader(files[1].open()))
    assert {line["case"] for line in lines} == set(names)
    assert float(lines[0]["p50_us"]) > 0
    picture = tmp_path / "r.png"
    subprocess.run([sys.executable, PLOT, "ops", files[0], picture], check=True, timeout=100)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_alone_on_stdout(capsys):
    assert bench("add_norm", "--case", "odd", "--backend", "triton", *QUICK, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (case,) = report["cases"]
    rows = {row["backend"]: row for row in case["backends"]}
    assert rows.keys() == {"eager", "triton"}  # named, so the interpreter is timed
    assert rows["triton"]["state"] == "timed" and rows["triton"]["vs_eager"] > 0


def test_all_ops_say_what_they_skip(capsys):
    assert bench("all", "--case", "odd", *QUICK, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    skipped = {entry["op"]: entry["reason"] for entry in report["skipped"]}
    assert "has no float32" in skipped["fp8_gemm_gelu_quant"]
    assert {case["op"] for case in report["cases"]} >= {"add_norm", "merge_lse", "quantize"}
    assert not [
        row for case in report["cases"] for row in case["backends"] if row["state"] == "red"
    ]
    assert report["means"]


def test_red_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(runner, "check_small_cases", lambda *case: (False, "off by a mile"))
    assert bench("add_norm", *SMALL, *QUICK, "--backend", "triton") == 1
    shown = capsys.readouterr().out
    assert "red: triton: off by a mile" in shown


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), UserError("no"), RuntimeError("a bug")])
def test_what_is_finished_is_kept(failure, tmp_path, monkeypatch, capsys):
    bench_case, done = runner.bench_case, []

    def interrupted(*arguments):
        if done:
            raise failure
        done.append(True)
        return bench_case(*arguments)

    monkeypatch.setattr(suite, "bench_case", interrupted)
    file, table = tmp_path / "r.json", tmp_path / "r.csv"
    words = ("add_norm", "--shape", "L=4,8", *QUICK, "--json", file, "--csv", table)
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError, match="a bug"):
            bench(*words)
    else:
        assert bench(*words) == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert "L=4" in table.read_text() and "L=8" not in table.read_text()
    report = json.loads(file.read_text())
    assert not report["complete"] and [case["case"] for case in report["cases"]] == ["L=4"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["abacus"], ["abacus", "add_norm"]),
        (["add_norm", "--case", "abacus"], ["--case abacus", "14b_ulysses8"]),
        (["add_norm", "--shape", "Q=5"], ["Q", "B, L, D"]),
        (["add_norm", "--shape", "L"], ["--shape L", "L=1512,D=5120"]),
        (["rms_norm_rope", "--shape", "S=3"], ["S=3", "RoPE table"]),
        (["add_norm", "--backend", "abacus"], ["--backend abacus", "reference"]),
        (["add_norm", "--dtype", "fp32", "--backend", "cuda"], ["--backend cuda", "cannot run"]),
        (["add_norm", "--ncu"], ["--ncu", "GPU"]),
        (["add_norm", "--nsys"], ["--nsys", "GPU"]),
        (["merge_lse", "--json", "add_norm"], ["add_norm", ".json"]),
        (["add_norm", "--csv", "x.txt"], ["x.txt", ".csv"]),
    ],
)
def test_refused(arguments, words, capsys):
    refused(capsys, bench(*arguments, "--device", "cpu"), *words)
