"""Commands that measure: they end in time, with a result and a sentence, or say what would do."""

import json
import re
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from cli_tools import generate, refused, write_wav
from PIL import Image

from livetalk_kernels import machine as machine_module
from livetalk_kernels.bench import timer, tune
from livetalk_kernels.bench.timer import CpuTimer
from livetalk_kernels.machine import Memory
from livetalk_kernels.testing.trace import trace_problems
from livetalk_kernels.tuning import Tuning
from livetalk_model.cli.main import main

SLOW_FLUSH = 0.03  # seconds

pytestmark = pytest.mark.usefixtures("small_machine")


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_bench_ends_in_time_where_the_flush_takes_longer_than_the_call(monkeypatch, capsys):
    flushes = count()

    def flush(self: CpuTimer) -> None:
        if self._buffer is not None:
            next(flushes)
            time.sleep(SLOW_FLUSH)

    monkeypatch.setattr(CpuTimer, "_flush", flush)
    shape = ["--shape", "L=1,D=64", "--device", "cpu", "--no-compile"]
    assert run("bench", "add_norm", *shape, "--seconds", 0.5, "--json") == 0
    assert next(flushes) * SLOW_FLUSH < 0.6  # before: 30 s
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert all(row["time"]["count"] >= 2 for row in case["backends"] if row["state"] == "timed")


def test_bench_shows_three_digits_of_a_slow_rate(capsys):
    small = ["--shape", "L=4,D=64", "--device", "cpu", "--no-compile", "--rounds", 2]
    assert run("bench", "add_norm", *small, "--backend", "reference") == 0
    shown = capsys.readouterr().out
    assert "FLOP/s" in shown and "0.000" not in shown
    (row,) = [line for line in shown.splitlines() if line.strip().startswith("eager")]
    (rate,) = re.findall(r" ([\d.]+) [kMG] ", row)
    assert len(rate.replace(".", "").lstrip("0")) in (1, 2, 3) and float(rate) > 0


@pytest.mark.parametrize("shape", ["L=0", "L=0:8:4", "D=0"])
def test_bench_refuses_empty_sizes(capsys, shape):
    refused(capsys, run("bench", "add_norm", "--shape", shape, "--device", "cpu"), "--shape")


TUNE = ["--preset", "tiny", "--size", "16x16", "--device", "cpu"]


def test_tune_says_which_budget_would_do_and_it_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "seconds_needed", lambda case, limits: 3.0)
    monkeypatch.setattr(tune, "ROUNDS_SECONDS", (0.01, 0.02))
    monkeypatch.setitem(timer.WARM_SECONDS, "cpu", 0.01)
    file = tmp_path / "t.json"
    error = run("tune", "rms_norm", *TUNE, "--budget", 2, "--output", file)
    assert error == 2 and not file.exists()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nothing can be timed" in said and "3.0 s" in said
    budget = re.search(r"use --budget (\d+) or more", said)
    assert budget is not None and 5 <= int(budget[1]) <= 20
    assert run("tune", "rms_norm", *TUNE, "--budget", budget[1], "--output", file) == 0
    assert Tuning.load(file).machines[0].choices


def test_tune_of_ops_that_a_model_does_not_call(tmp_path, capsys):
    code = run("tune", "fp8_gemm", *TUNE, "--output", tmp_path / "t.json")
    refused(capsys, code, "fp8_gemm", "--preset tiny")


def test_tune_says_that_nothing_was_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "too_large", lambda case: "needs more than there is")
    file = tmp_path / "t.json"
    assert run("tune", "rms_norm", *TUNE, "--output", file) == 1 and not file.exists()
    shown = capsys.readouterr()
    assert "needs more than there is" in shown.out and "nothing was timed" in shown.err


@pytest.mark.parametrize(
    "sides",
    [
        (),
        ("--a", "precision=exact"),
        ("--b", "dtype=fp32,reuse=yes"),
        ("--a", "backend=reference", "--b", "backend=reference"),
    ],
)
def test_diff_of_equals_is_refused_before_anything_is_loaded(monkeypatch, capsys, sides):
    monkeypatch.setattr("livetalk_model.loading.load_pipeline", lambda **_: pytest.fail("loaded"))
    error = refused(capsys, run("diff", "--device", "cpu", *sides), "--a", "--b")
    assert "for example --a dtype=bf16 --b dtype=fp32" in error


def test_memory_is_not_measured_beyond_the_limit(monkeypatch, capsys):
    here = Memory(total=24 << 30, limit=10 << 20, available=4 << 20)
    monkeypatch.setattr(machine_module, "memory", lambda: here)
    options = ["--memory", "--measure", "--preset", "tiny", "--size", "32x48", "--device", "cpu"]
    refused(capsys, run("doctor", *options), "--measure", "4.2 MB of a limit of 10.5 MB")


MACHINE = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "cpu_quota": None,
    "gpu": None,
    "threads": 2,
    "torch": "2.13.0",
    "date": "2026-01-01",
}


def profiled(folder: Path, seconds: float, **facts: object) -> Path:
    times = seconds * np.exp(np.random.default_rng(1).normal(0, 0.02, 12))
    chunks = [
        {"seconds": s, "stages": {"denoise": {"all": 0.95 * s}}, "unattributed": 0.05 * s}
        for s in times
    ]
    report = {"schema": "livetalk/profile/1", "settings": {"model": "tiny"}, "chunks": chunks}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report | {"machine": MACHINE | facts}))
    return folder


GPU = {"name": "NVIDIA H200", "count": 8, "driver": "580.65", "cuda": "13.0"}


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"cpu": "Intel Xeon"}, "cpu AMD EPYC -> Intel Xeon"),
        ({"cores": 96}, "cores 2 -> 96"),
        ({"cpu_quota": 0.5}, "cpu_quota nothing -> 0.5"),
        ({"gpu": GPU}, "gpu.name nothing -> NVIDIA H200"),
    ],
)
def test_two_machines_are_said_before_any_number(tmp_path, capsys, facts, named):
    a, b = profiled(tmp_path / "a", 0.2), profiled(tmp_path / "b", 0.1, **facts)
    out = tmp_path / "out"
    assert run("profile", "--compare", a, b, "--output", out) == 1
    shown = " ".join(capsys.readouterr().out.split())
    text = (out / "compare.md").read_text()
    assert shown.startswith("DIFFERENT MACHINES: ") and named in shown
    assert "B is" not in shown and "B is" not in text
    assert text.index("DIFFERENT MACHINES") < text.index("- A:")
    report = json.loads((out / "compare.json").read_text())
    assert report["verdict"] == "another machine"
    (first, *_) = report["other_machine"]
    assert first["what"] == named.split()[0]


@pytest.mark.parametrize(
    ("facts", "named"),
    [({"torch": "2.14.0"}, "torch 2.13.0 -> 2.14.0"), ({"threads": 1}, "threads 2 -> 1"), ({}, "")],
)
def test_other_versions_and_threads_are_said_first(tmp_path, capsys, facts, named):
    a, b = profiled(tmp_path / "a", 0.2), profiled(tmp_path / "b", 0.1, **facts)
    assert run("profile", "--compare", a, b) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "B is faster" in shown and "DIFFERENT MACHINES" not in shown
    assert shown.startswith(f"DIFFERENT ENVIRONMENT: {named}" if named else "A: ")


def test_a_name_in_latin_1_leaves_the_trace_valid(tmp_path):
    portrait = tmp_path / "caf\udce9.png"
    Image.new("RGB", (64, 64), (200, 150, 120)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(portrait)
    sound, trace = write_wav(tmp_path / "a.wav", 0.5), tmp_path / "t.json"
    where = ["--audio", sound, "--output", tmp_path / "o.npy", "--timeline", trace]
    assert generate("--portrait", portrait, *where, "--steps", 1, "--size", "32x48") == 0
    found = json.loads(trace.read_bytes().decode("utf-8", "strict"))
    assert trace_problems(found) == []
    (word,) = [word for word in found["otherData"]["command"] if word.endswith(".png")]
    assert word.endswith(r"caf\xe9.png")
