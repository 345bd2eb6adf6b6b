"""``livetalk tune``: what it prints, writes and refuses, and who reads it."""

import json
from pathlib import Path

import pytest
import torch
from cli_tools import FAST, generate, refused

from livetalk_kernels.bench import timer, tune
from livetalk_kernels.bench.tune import Outcome, Tuner
from livetalk_kernels.tuning import Tuning, TuningKey
from livetalk_model.cli.main import main

SMALL = ["--preset", "tiny", "--size", "16x16", "--device", "cpu", "--budget", "3"]


@pytest.fixture(autouse=True)
def short_rounds(small_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "ROUNDS_SECONDS", (0.01, 0.02))
    monkeypatch.setitem(timer.WARM_SECONDS, "cpu", 0.01)


def run(*arguments: object) -> int:
    return main(["tune", *map(str, arguments)])


def test_table_file_and_progress(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert run("rms_norm", "add_norm", *SMALL, "--threads", "1") == 0
    assert torch.get_num_threads() == threads
    shown = capsys.readouterr()
    assert all(len(line.rstrip()) <= 80 for line in shown.out.splitlines())
    for word in ("add_norm", "rms_norm", "fastest", "B=1 L=9 D=256"):
        assert word in shown.out
    assert "[1/" in shown.err and "wrote livetalk-tuning.json" in shown.err
    found = Tuning.load("livetalk-tuning.json")
    (entry,) = found.machines
    assert entry.key.threads == 1 and entry.complete and entry.date
    assert {choice.op for choice in entry.choices} == {"rms_norm", "add_norm"}
    assert {choice.dtype for choice in entry.choices} == {"float32"}
    assert all(choice.calls > 1 for choice in entry.choices)
    assert list(tmp_path.iterdir()) == [tmp_path / "livetalk-tuning.json"]


def test_json_and_an_update(tmp_path, capsys):
    file = tmp_path / "new/t.json"
    assert run("rms_norm", *SMALL, "--output", file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(file) and report["complete"]
    assert report["red"] == [] and report["skipped"] == []
    assert report["choices"] == json.loads(file.read_text())["machines"][0]["choices"]
    assert report["key"]["threads"] == torch.get_num_threads()
    assert run("rms_norm", *SMALL, "--dtype", "bf16", "--output", file) == 0
    (entry,) = Tuning.load(file).machines
    assert {choice.dtype for choice in entry.choices} == {"float32", "bfloat16"}


def test_the_ops_own_cases(monkeypatch, tmp_path):
    asked = []

    def note(self, calls):
        asked.extend(calls)
        return iter(())

    monkeypatch.setattr(Tuner, "run", note)
    assert run("--device", "cpu", "--output", tmp_path / "t.json") == 1  # nothing was timed
    assert not (tmp_path / "t.json").exists()
    names = {(call.case.op, call.case.name) for call in asked}
    assert ("chunk_attention", "mid") in names and ("add_norm", "14b_ulysses8") in names


def test_the_schedules_that_generate_has(tmp_path, capsys):
    """Ops that only these schedules call are tuned where they are asked for."""
    options = (*SMALL, "--budget", "60", "--output", tmp_path / "t.json", "--json")
    assert run("add_residual", *options) == 2
    assert "never calls it" in capsys.readouterr().err
    assert run("add_residual", "rms_norm_silu", *options, "--fuse-bias") == 0
    report = json.loads(capsys.readouterr().out)
    assert {choice["op"] for choice in report["choices"]} == {"add_residual", "rms_norm_silu"}


def test_fp8_linears_of_a_preset(tmp_path, capsys):
    options = (*SMALL, "--precision", "fp8", "--budget", "6", "--json")
    assert run("fp8_gemm", "quantize", *options, "--output", tmp_path / "t.json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {choice["op"] for choice in report["choices"]} == {"fp8_gemm", "quantize"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_what_is_done_is_kept(failure, tmp_path, monkeypatch, capsys):
    whole = Tuner.run

    def interrupted(self, calls):
        for outcome in whole(self, calls):
            assert isinstance(outcome, Outcome)
            yield outcome
            raise failure

    monkeypatch.setattr(Tuner, "run", interrupted)
    file = tmp_path / "t.json"
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError, match="a bug"):
            run("rms_norm", "add_norm", *SMALL, "--output", file)
    else:
        assert run("rms_norm", "add_norm", *SMALL, "--output", file) == 130
    (entry,) = Tuning.load(file).machines
    assert len(entry.choices) == 1 and not entry.complete


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["abacus"], ["abacus", "add_norm"]),
        (["--size", "16x16"], ["--size", "--preset"]),
        (["--precision", "fp8"], ["--precision", "--preset"]),
        (["--fuse-bias"], ["--fuse-bias", "--preset"]),
        (["--preset", "tiny", "--m-major-scales"], ["--m-major-scales", "--precision fp8"]),
        (["--preset", "huge"], ["huge"]),
        (["--preset", "tiny", "--size", "17x16"], ["17x16"]),
        (["--output", "t.txt"], ["t.txt", ".json"]),
    ],
)
def test_bad_input(arguments, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, run(*arguments), *names)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_not_replaced(tmp_path, capsys):
    file = tmp_path / "t.json"
    file.write_text("{")
    refused(capsys, run("rms_norm", *SMALL, "--output", file), str(file), "livetalk tune")
    assert file.read_text() == "{"


# Who reads it ----------------------------------------------------------------------------------


@pytest.fixture
def reference_is_fastest(tmp_path: Path) -> Path:
    """A file in which the reference has won add_norm, which it does not by default."""
    here = TuningKey.of(torch.device("cpu"))
    entry = {
        "key": {**vars(here), "versions": dict(here.versions)},
        "complete": True, "date": "", "commit": "",
        "choices": [
            {
                "op": "add_norm", "dtype": "float32", "dims": {"D": 256}, "variant": {}, "calls": 1,
                "backend": "reference", "options": {}, "p50": {"reference": 1.0, "cpu": 3.0},
            }
        ],
    }  # fmt: skip
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"format": "livetalk-tuning", "version": 1, "machines": [entry]}))
    return file


def test_backends_shows_it(reference_is_fastest, capsys, monkeypatch):
    command = ["backends", "--device", "cpu", "--dtype", "fp32"]

    def row() -> dict:
        rows = json.loads(capsys.readouterr().out)["backends"]
        (found,) = (row for row in rows if row["op"] == "add_norm" and row["auto"])
        return found

    assert main([*command, "--json"]) == 0
    assert row()["backend"] == "cpu"
    assert main([*command, "--json", "--config", str(reference_is_fastest)]) == 0
    found = row()
    assert found["backend"] == "reference" and "(3.0x the next)" in found["why"]
    monkeypatch.setenv("LIVETALK_CONFIG", str(reference_is_fastest))
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "tuned:" in shown and all(len(line) <= 80 for line in shown.splitlines())


def test_generate_runs_what_the_file_says(reference_is_fastest, portrait, speech, out, capsys):
    arguments = ["--portrait", portrait, "--audio", speech, "--output", out / "a.npy", "--json"]
    tuned = ["--config", reference_is_fastest]

    def chosen(*more: object) -> dict:
        assert generate(*arguments, *FAST, *more) == 0
        return json.loads(capsys.readouterr().out)["settings"]["backends"]["dit"]["add_norm"]

    assert chosen(*tuned)["name"] == "reference"
    assert chosen(*tuned, "--backend", "cpu") == {"name": "cpu", "reason": "named"}


def test_a_missing_file_is_refused(portrait, speech, out, capsys, tmp_path):
    arguments = ["--portrait", portrait, "--audio", speech, "--output", out / "a.npy"]
    missing = tmp_path / "none.json"
    refused(capsys, generate(*arguments, "--config", missing), str(missing), "livetalk tune")
    assert not list(out.iterdir())


def test_a_stale_file_is_one_warning(reference_is_fastest, portrait, speech, out, caplog):
    value = json.loads(reference_is_fastest.read_text())
    value["machines"][0]["key"]["name"] = "Abacus 3000"
    reference_is_fastest.write_text(json.dumps(value))
    arguments = ["--portrait", portrait, "--audio", speech, "--output", out / "a.npy"]
    assert generate(*arguments, *FAST, "--config", reference_is_fastest) == 0
    (line,) = [r.getMessage() for r in caplog.records if "stale" in r.getMessage()]
    assert str(reference_is_fastest) in line and "Abacus 3000" in line
