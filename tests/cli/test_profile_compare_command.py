"""``livetalk profile --compare``, as a user calls it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from cli_tools import refused

from livetalk_model.cli import ranks
from livetalk_model.cli.main import main

# Instead of the model's: `--preset slow` makes chunks of 3 ms instead of 2.
FAKE = """\
import json, socket, sys, time

preset = sys.argv[sys.argv.index("--preset") + 1] if "--preset" in sys.argv else "tiny"
path = sys.argv[sys.argv.index("--paced") + 1]
with open(path + ".words", "w") as file:
    json.dump(sys.argv[1:], file)
if preset == "bad":
    print("error: --preset bad: unknown", file=sys.stderr)
    raise SystemExit(2)
if preset == "broken":
    print("error: out of memory; use a smaller --size", file=sys.stderr)
    raise SystemExit(1)
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
lines = connection.makefile("rb")
def send(value):
    connection.sendall(json.dumps(value).encode() + b"\\n")
lines.readline()
send({"ready": {"model": preset, "backends": {"dit": dict.fromkeys("abcdef", preset)}}})
while lines.readline() == b"go\\n":
    seconds = 0.003 if preset == "slow" else 0.002
    time.sleep(0.05 if preset == "long" else 0)
    send({"seconds": seconds, "stages": {"denoise": {"all": 0.9 * seconds}},
          "unattributed": 0.1 * seconds})
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that both sides run."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    monkeypatch.setattr(ranks, "PROGRAM", (str(path),))
    return path


def compare(a: object, b: object, *extra: object) -> int:
    return main(["profile", "--compare", str(a), str(b), *map(str, extra)])


def report_folder(folder: Path, seconds: float, **changes: object) -> Path:
    times = seconds * np.exp(np.random.default_rng(int(seconds * 1000)).normal(0, 0.02, 12))
    chunks = [
        {"seconds": s, "stages": {"denoise": {"all": 0.95 * s}}, "unattributed": 0.05 * s}
        for s in times
    ]
    report = {
        "schema": "livetalk/profile/1",
        "settings": {"model": "tiny [x]", "seed": 1},
        "machine": {"cpu": "this", "date": "2026-01-01"},
        "chunks": chunks,
    } | changes
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_slower_command_is_found(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert compare("", "livetalk profile --preset slow", "--pairs", 12, "--output", out) == 0
    printed = capsys.readouterr()
    assert "B is slower: a chunk's time changes by +50.0 % (99 % interval:" in printed.out
    assert "settings.backends.dit, 6 entries: tiny -> slow" in printed.out
    assert "A: (the defaults)" in printed.out and "settings.model: tiny -> slow" in printed.out
    assert "NOT INTERLEAVED" not in printed.out
    table = [line for line in printed.out.splitlines() if "denoise" in line]
    assert len(table) == 1 and "slower" in table[0] and "…" not in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80
    assert "A and B take turns" in printed.err
    report = json.loads((out / "compare.json").read_text())
    assert report["schema"] == "livetalk/compare/1" and report["verdict"] == "slower"
    assert report["command"][:3] == ["livetalk", "profile", "--compare"]
    assert report["interleaved"] is True and len(report["b"]["chunks"]) == 12
    assert report["machine"]["torch"] and report["rows"][0]["change"]["count"] == 12
    text = (out / "compare.md").read_text()
    assert "| chunk | 2 ms | 3 ms |" in text and "B is slower" in text
    assert sorted(file.name for file in out.iterdir()) == ["compare.json", "compare.md"]


def test_equal_commands_are_equal(fake: Path, capsys: pytest.CaptureFixture) -> None:
    assert compare("--preset tiny", "--preset tiny", "--pairs", 10, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "no change" and report["changed"] == []
    assert [row["row"] for row in report["rows"]] == ["chunk", "denoise", "unattributed"]


def test_each_side_gets_its_own_words(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import livetalk_model.cli.profile_compare as module

    class Kept:
        """A folder that stays."""

        def __init__(self, prefix: str) -> None:
            assert prefix

        def __enter__(self) -> str:
            (tmp_path / "kept").mkdir()
            return str(tmp_path / "kept")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", Kept)
    assert compare("--avatar 'my face.avatar' --nproc 2", "profile --seed 3", "--pairs", 10) == 0
    words = [json.loads((tmp_path / f"kept/{side}/socket.words").read_text()) for side in "AB"]
    tail = ["--no-video", "--chunks", "41", "--paced"]  # up to four times as many pairs
    assert words[0][:-1] == ["profile", "--avatar", "my face.avatar", "--nproc", "2", *tail]
    assert words[1][:-1] == ["profile", "--seed", "3", *tail]


def test_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    a = report_folder(tmp_path / "a", 0.2)
    b = report_folder(tmp_path / "b", 0.1, settings={"model": "tiny [x]", "seed": 2})
    assert compare(a, b) == 0
    printed = capsys.readouterr().out
    assert "B is faster" in printed and "settings.seed: 1 -> 2" in printed
    assert "NOT INTERLEAVED: the two ran at different times." in printed
    assert compare(a, a, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "no change" and report["interleaved"] is False


@pytest.mark.parametrize(
    ("a", "b", "extra", "says"),
    [
        ("--preset tiny", "--preset bad", (), "command B: --preset bad: unknown"),
        ("--preset bad", "", (), "command A: --preset bad: unknown"),
        ("here", "", (), "A is 'here', neither a folder nor options"),
        ("", "--x '", (), "No closing quotation; fix the quotes"),
        ("", "--compare a b", (), "B has --compare, which cannot"),
        ("profile --nsys", "", (), "A has --nsys, which cannot"),
        ("--preset tiny", "--seed 3", ("--no-reuse",), "--no-reuse: is outside the two"),
        ("--preset tiny", "--seed 3", ("--warmup=3",), "--warmup: is outside the two"),
        ("", " --paced=x", (), "B has --paced=x, which cannot"),
    ],
)
def test_bad_input_is_named(
    fake: Path, capsys: pytest.CaptureFixture, a: str, b: str, extra: tuple[object, ...], says: str
) -> None:
    code = compare(a, b, *extra)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and error.startswith("error: ") and says in error


def test_folders_that_cannot_be_compared(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    empty, good = tmp_path / "empty", report_folder(tmp_path / "good", 0.1)
    empty.mkdir()
    refused(capsys, compare(good, empty), str(empty), "without report.json")
    refused(capsys, compare(good, "--preset tiny"), "one is a folder and one a command")
    refused(capsys, compare(good, good, "--output", fake), str(fake), "is not a folder")


def test_a_failure_is_one_line_and_the_last_words(
    fake: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compare("", "--preset broken", "--pairs", 10) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith("error: command B: ended with 1; if two models") for line in lines)
    assert lines[-1] == "  error: out of memory; use a smaller --size"


def test_ctrl_c_ends_both_processes(fake: Path) -> None:
    """And so does the loss of the comparison, by SIGKILL."""
    program = (
        "from livetalk_model.cli import main, ranks\n"
        f"ranks.PROGRAM = ({str(fake)!r},)\n"
        "raise SystemExit(main.main(['profile', '--compare', '--preset long', '--preset long', "
        "'--pairs', '2000']))\n"
    )
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("take turns" in line for line in lines)
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        os.kill(process.pid, number)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == code, rest
        assert "Traceback" not in rest
        end = time.monotonic() + 20
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers):
            assert time.monotonic() < end, "a process is left"
            time.sleep(0.02)


@pytest.mark.timeout(900)  # a minute on two idle cores
def test_the_model_itself(capsys: pytest.CaptureFixture) -> None:
    fast = "--preset tiny --device cpu --size 32x48 --warmup 1"
    assert compare(f"{fast} --steps 4", f"{fast} --steps 1", "--pairs", 10, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["row"]: row for row in report["rows"]}
    assert rows["denoise"]["verdict"] == "faster" and rows["denoise"]["change"]["ratio"] < 0.6
    assert {"chunk", "denoise", "decode", "encode"} <= set(rows)
    assert report["changed"] == [{"what": "settings.steps", "a": 4, "b": 1}]
    for side in "ab":
        for chunk in report[side]["chunks"]:
            stages = sum(sum(parts.values()) for parts in chunk["stages"].values())
            assert chunk["seconds"] == pytest.approx(stages + chunk["unattributed"], rel=1e-6)
