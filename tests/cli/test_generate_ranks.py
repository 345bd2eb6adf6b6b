"""``generate`` on several ranks, as a user starts it."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from cli_tools import being_written, write_wav

from livetalk_kernels.testing.faults import run_fault
from livetalk_kernels.testing.trace import trace_problems

PROGRAM = ["-m", "livetalk_model.cli.main", "generate", "--preset", "tiny", "--device", "cpu"]
LIMIT = 240.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    audio = write_wav(folder / "speech.wav", 2.5)
    portrait = Path(__file__).resolve().parents[2] / "model/samples/ada.png"
    return ["--portrait", str(portrait), "--audio", str(audio)]


def generate(
    options: Sequence[str], start: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *start, *PROGRAM, *options],
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def alone(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    output = tmp_path_factory.mktemp("alone") / "frames.npy"
    done = generate([*inputs, "--output", str(output)])
    assert done.returncode == 0, done.stderr
    return np.load(output)


def test_nproc_starts_ranks_that_make_the_frames_of_one(
    inputs: list[str], alone: np.ndarray, tmp_path: Path
) -> None:
    output, timeline = tmp_path / "frames.npy", tmp_path / "trace.json"
    split = ["--nproc", "3", "--vae-grid", "1x3", "--halo-overlap", "--timeline", str(timeline)]
    done = generate([*inputs, *split, "--output", str(output), "--json"])
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert settings["ranks"] == {"world": 3, "ulysses": 1, "ring": 3, "vae_grid": "1x3"}
    assert psnr(np.load(output), alone) >= 60
    names = ["frames.npy", "trace.json", "trace.rank1.json", "trace.rank2.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    traces = [json.loads((tmp_path / name).read_text()) for name in names[1:]]
    together = {"traceEvents": [event for trace in traces for event in trace["traceEvents"]]}
    assert [trace_problems(trace) for trace in (*traces, together)] == [[]] * 4
    # They make a chunk together, so its steps begin at nearly the same time on all of them.
    first = [
        next(event["ts"] for event in trace["traceEvents"] if event["name"] == "denoise")
        for trace in traces
    ]
    assert max(first) - min(first) < 1e6


def test_plain_torchrun_works_as_well(inputs: list[str], alone: np.ndarray, tmp_path: Path) -> None:
    output = tmp_path / "frames.npy"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = generate([*inputs, "--output", str(output), "--ring", "1"], torchrun)
    assert done.returncode == 0, done.stderr
    assert psnr(np.load(output), alone) >= 60


def two_agents(options: Sequence[str], port: int) -> list["subprocess.Popen[str]"]:
    """Run torchrun twice, as on two machines, with two ranks each."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", node,
             "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port),
             *PROGRAM, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for node in "01"
    ]  # fmt: skip


def test_the_ring_alone_crosses_nodes(inputs: list[str], alone: np.ndarray, tmp_path: Path) -> None:
    output = tmp_path / "frames.npy"
    agents = two_agents([*inputs, "--output", str(output), "--json"], free_port())
    said = [agent.communicate(timeout=LIMIT) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    ranks = json.loads(said[0][0])["settings"]["ranks"]
    assert (ranks["world"], ranks["ulysses"], ranks["ring"]) == (4, 2, 2)
    assert not said[1][0]  # rank 0 alone reports
    assert psnr(np.load(output), alone) >= 60


def test_a_rank_lost_on_one_node_ends_both(inputs: list[str], tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "long.wav", 60.0)
    video = tmp_path / "out/talk.mp4"
    options = [*inputs[:2], "--audio", str(audio), "--output", str(video)]
    agents = two_agents(options, free_port())
    end = time.monotonic() + LIMIT
    while not being_written(video) and time.monotonic() < end:
        time.sleep(0.05)
    victim = psutil.Process(agents[1].pid).children()[-1]
    victim.kill()
    begin = time.monotonic()
    said = [agent.communicate(timeout=60) for agent in agents]
    assert time.monotonic() - begin < 35  # torchrun's own agents wait for each other
    assert all(agent.returncode for agent in agents), said
    assert any("error: rank 3 on" in error for _, error in said), said
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_killed_rank_leaves_a_video(inputs: list[str], tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "long.wav", 60.0)
    folder = tmp_path / "out"
    folder.mkdir()
    command = [
        sys.executable, *PROGRAM, *inputs[:2], "--audio", str(audio), "--nproc", "2",
        "--output", str(folder / "talk.mp4"),
    ]  # fmt: skip
    fault = run_fault(command, "write", signal.SIGKILL, 1, world=2, folder=folder)
    assert fault.passed, fault
    assert fault.code == 1
    assert [file.name for file in folder.iterdir()] == ["talk.mp4"]
    with av.open(str(folder / "talk.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 0


def test_ctrl_c_stops_all_ranks_and_keeps_the_video(inputs: list[str], tmp_path: Path) -> None:
    audio = write_wav(tmp_path / "long.wav", 60.0)
    video = tmp_path / "out/talk.mp4"
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, *inputs[:2], "--audio", str(audio), "--nproc", "2",
         "--output", str(video), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + LIMIT
    while not being_written(video) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert json.loads(printed)["output"]["complete"] is False
    assert [file.name for file in video.parent.iterdir()] == ["talk.mp4"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--nproc", "2", "--ulysses", "3"], "--ulysses 3: does not fit 2 ranks"),
        (["--ulysses", "2"], "--ulysses 2: does not fit 1 rank"),
        (["--deadline", "sleep=1"], "there is no phase sleep"),
        (["--vae-grid", "2"], "--vae-grid 2: write rows x columns"),
    ],
)
def test_bad_splits_are_reported_once(
    options: list[str], says: str, inputs: list[str], tmp_path: Path
) -> None:
    done = generate([*inputs, *options, "--output", str(tmp_path / "out.mp4")])
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error:") == 1 and says in done.stderr
    assert not list(tmp_path.iterdir())
