"""``livetalk profile`` as a user meets it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_tools import refused

from livetalk_kernels.testing.trace import trace_problems
from livetalk_model.cli import profile_tools
from livetalk_model.cli.main import main

SMALL = ["--preset", "tiny", "--device", "cpu", "--size", "32x48", "--steps", "1"]
SHORT = [*SMALL, "--chunks", "2", "--warmup", "1"]
PICTURES = {"breakdown.png", "roofline.png", "timeline.png", "chunks.png"}
FILES = {*PICTURES, "report.json", "report.md", "trace.rank0.json"}
LIMIT = 240.0


def profile(*options: object) -> int:
    return main(["profile", *map(str, options)])


def test_a_folder_with_all_there_is_and_tables_of_80_columns(out, capsys):
    assert profile(*SHORT, "--output", out / "new") == 0
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and "USDT" not in printed.err
    assert max(map(len, printed.out.splitlines()[:-1])) <= 80
    for word in ("denoise", "linears", "unattributed", "start-up", "of floor", "random weights"):
        assert word in printed.out
    assert {file.name for file in (out / "new").iterdir()} == FILES
    report = json.loads((out / "new/report.json").read_text())
    assert set(report["files"]) == FILES and report["complete"]
    assert report["command"][:2] == ["livetalk", "profile"]
    assert trace_problems(json.loads((out / "new/trace.rank0.json").read_text())) == []
    text = (out / "new/report.md").read_text()
    assert all(name in text for name in PICTURES)


def test_json_is_the_report(out, capsys):
    assert profile(*SHORT, "--no-ops", "--no-video", "--json", "--output", out / "new") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "new/report.json").read_text())
    assert printed["ops"] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "30x48"], "30x48"),
        (["--avatar", "a.avatar", "--size", "32x48"], "--size"),
        (["--compile", "--cuda-graphs"], "--compile and --cuda-graphs"),
        (["--nsys", "--ncu"], "--nsys and --ncu"),
        (["--nsys"], "--nsys: supports NVIDIA GPUs only"),
        (["--ncu", "--nproc", "2"], "--ncu: replays kernels one at a time"),
        (["--avatar", "missing.avatar"], "missing.avatar"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options, says, out, capsys, monkeypatch):
    monkeypatch.chdir(out)
    given = ["--device", "cpu", *options]
    error = refused(capsys, profile(*given), says)
    assert "livetalk-profile" not in error and not list(out.iterdir())


def test_a_split_that_does_not_fit_is_reported_once(out):
    done = subprocess.run(
        [sys.executable, "-m", "livetalk_model.cli.main", "profile", *SHORT, "--nproc", "2",
         "--ulysses", "3", "--output", str(out / "new")],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("error:") == 1, done.stderr
    assert "--ulysses 3: does not fit 2 ranks" in done.stderr and not list(out.iterdir())


def test_the_output_must_be_a_folder(out, capsys):
    (out / "file").write_text("mine")
    refused(capsys, profile(*SHORT, "--output", out / "file"), str(out / "file"))
    assert (out / "file").read_text() == "mine"


def test_ranks_write_a_trace_each(out):
    done = subprocess.run(
        [sys.executable, "-m", "livetalk_model.cli.main", "profile", *SHORT, "--nproc", "2",
         "--output", str(out / "new")],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (out / "new").iterdir()} == {*FILES, "trace.rank1.json"}
    report = json.loads((out / "new/report.json").read_text())
    assert len(report["ranks"]) == 2 and set(report["files"]) == {*FILES, "trace.rank1.json"}
    assert done.stderr.count("loading") == 1  # rank 0 alone speaks
    assert trace_problems(json.loads((out / "new/trace.rank1.json").read_text())) == []


def test_ctrl_c_keeps_what_was_measured(out):
    process = subprocess.Popen(
        [sys.executable, "-m", "livetalk_model.cli.main", "profile", *SMALL, "--chunks", "5000",
         "--output", str(out / "new")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    end = time.monotonic() + LIMIT
    for line in process.stderr:
        if line.startswith("chunk 3 of") or time.monotonic() > end:
            break
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "Stopped early" in printed
    report = json.loads((out / "new/report.json").read_text())
    assert not report["complete"] and len(report["chunks"]) >= 3


def test_what_a_former_run_left_is_replaced(out):
    folder = out / "new"
    folder.mkdir()
    for name in ("report.json", "trace.rank0.json", "trace.rank7.json", "mine.txt"):
        (folder / name).write_text("old")
    assert profile(*SHORT, "--no-ops", "--no-video", "--output", folder) == 0
    names = {file.name for file in folder.iterdir()}
    assert names == (FILES - {"roofline.png"}) | {"mine.txt"}
    assert (folder / "mine.txt").read_text() == "old"
    assert json.loads((folder / "report.json").read_text())["complete"]


def test_the_tools_run_the_same_command_without_themselves(out):
    arguments = ["profile", "--preset", "14b", "--nsys", "--output", str(out)]
    line = profile_tools.command_line("/bin/nsys", "nsys", out, arguments)
    assert line[0] == "/bin/nsys" and "--capture-range=cudaProfilerApi" in line
    assert line[line.index("--output") + 1] == str(out / "nsys")
    assert line[-6:] == ["profile", "--preset", "14b", "--output", str(out), "--captured"]
    assert profile_tools.command_line("ncu", "ncu", out, ["profile", "--ncu"])[-2:] == [
        "profile", "--captured",
    ]  # fmt: skip


def test_a_missing_tool_is_reported(out, capsys, monkeypatch):
    monkeypatch.setattr("livetalk_model.loading.resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setenv("PATH", str(out))
    code = profile("--nsys", "--output", out / "new")
    refused(capsys, code, "nsys is not on the PATH", "CUDA toolkit")


def test_its_help_names_the_comparison_and_hides_what_is_not_for_people(capsys):
    with pytest.raises(SystemExit):
        profile("--help")
    text = capsys.readouterr().out
    assert "--compare A B" in text and "--paced" not in text and "--captured" not in text


def test_the_transformer_compiled(out):
    assert profile(*SHORT, "--compile", "--no-video", "--output", out / "new") == 0
    report = json.loads(Path(out / "new/report.json").read_text())
    assert report["settings"]["compiled"] is True and report["ops"] == []
    denoise = [row for row in report["summary"]["stages"] if row["stage"] == "denoise"]
    assert [row["part"] for row in denoise] == [""]
