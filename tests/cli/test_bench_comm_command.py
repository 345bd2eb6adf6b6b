"""``livetalk bench comm``: ranks, table, JSON, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import refused

from livetalk_model.cli.main import main

QUICK = ["--device", "cpu", "--preset", "tiny", "--size", "48x80", "--rounds", "2"]


def bench_comm(*arguments: object) -> int:
    return main(["bench", "comm", *map(str, arguments), "--device", "cpu"])


def command(module: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a process of its own, since ranks inherit what they print to."""
    return subprocess.run(
        [sys.executable, "-m", *module, "bench", "comm", *QUICK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"},
    )


def test_three_ranks_one_table_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    options = ("--nproc", 3, "--ring", 3, "--vae-grid", "1x3", "--json", file)
    done = command(["livetalk_model.cli.main"], *options)
    assert done.returncode == 0, done.stderr
    assert all(len(line.rstrip()) <= 80 for line in done.stdout.splitlines())
    assert "…" not in done.stdout
    title = "tiny 48x80, float32, 3 ranks by gloo: ulysses 1 x ring 3, VAE 1x3"
    for text in (title, "link one way", "link both ways", "keys and values round the ring",
                 "halo 48x80x8", "uint8 frames to rank 0", "torch", "commit"):  # fmt: skip
        assert done.stdout.count(text) == 1, text  # rank 0 alone prints
    assert "Traceback" not in done.stderr and f"wrote {file}" in done.stderr
    report = json.loads(file.read_text())
    assert report["machine"].keys() >= {"cpu", "gpu", "torch", "threads", "commit", "date", "time"}
    assert report["command"][:3] == ["livetalk", "bench", "comm"]
    settings = report["settings"]
    assert settings["world"] == settings["ranks_per_node"] == 3 and settings["engine"] == "gloo"
    assert report["link"]["one_way"]["gb_per_s"] > 0
    assert report["link"]["nvlink_nominal_gb_per_s"] is None
    kinds = {row["kind"] for row in report["patterns"]}
    assert kinds == {"link", "broadcast", "ring", "gather", "halo", "collect"}
    for row in report["patterns"]:
        assert row["state"] == "timed" and row["time"]["count"] == 2
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["time"]["p50"] / 1e9)
        assert row["of_link"] > 0


def test_under_plain_torchrun() -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = command([*torchrun, "livetalk_model.cli.main"], "--json")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["ulysses"], settings["ring"], settings["vae_grid"]) == (2, 1, "1x2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--nproc N", "torchrun"]),
        (["--nproc", 1], ["--nproc N"]),
        (["--nproc", 3, "--ulysses", 2], ["--ulysses 2", "1 x 3"]),
        (["--nproc", 2, "--vae-grid", "3x1"], ["--vae-grid 3x1", "2x1"]),
        (["--nproc", 2, "--preset", "abacus"], ["abacus", "14b"]),
        (["--nproc", 2, "--size", "50x48"], ["50x48"]),
        (["--nproc", 2, "--json", "x.txt"], ["x.txt", ".json"]),
        (["--nproc", 2, "--case", "model"], ["--case", "ops"]),
        (["--nproc", 2, "--no-compile"], ["--no-compile", "ops"]),
        (["--nproc", 2, "--nsys"], ["--nsys", "ops"]),
        (["add_norm", "--nproc", 2], ["comm", "by itself"]),
    ],
)
def test_refused(arguments, words, capsys) -> None:
    refused(capsys, bench_comm(*arguments), *words)


@pytest.mark.parametrize("option", ["--nproc", "--ring", "--preset", "--vae-grid"])
def test_ops_take_no_ranks(option, capsys) -> None:
    refused(capsys, main(["bench", "add_norm", option, "2"]), option, "bench comm")
