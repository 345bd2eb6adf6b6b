"""Launching: environment of the ranks, exit codes, Ctrl-C, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from livetalk_kernels.environment import Ranks, omp_threads
from livetalk_kernels.errors import UserError
from livetalk_kernels.testing.faults import Run

LAUNCH = """
import sys
from livetalk_kernels.runtime.ranks.launch import launch
sys.exit(launch(sys.argv[2:], nproc=int(sys.argv[1]), left="talk.mp4.part is left"))
"""
ENVIRON = {
    "RANK": "2",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "first",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "abc",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def command(nproc: int, program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", LAUNCH, str(nproc), "-c", program, *arguments]


def wait_for(run: Run, text: str) -> None:
    end = time.monotonic() + 60
    while text not in run.stdout():
        assert run.process.poll() is None and time.monotonic() < end, run.stderr()
        time.sleep(0.02)
    run.look()


def test_ranks_are_read_from_torchruns_environment():
    assert Ranks.from_environ({}) is None
    assert Ranks.from_environ({"RANK": "0", "WORLD_SIZE": "2"}) is None  # some scheduler's
    ranks = Ranks.from_environ(ENVIRON)
    assert ranks == Ranks(
        rank=2,
        world=4,
        local_rank=0,
        local_world=2,
        node=1,
        address="first",
        port=29500,
        agent_store=True,
        run="abc/1",
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", None, "RANK is missing"),
        ("RANK", "two", "'two'"),
        ("RANK", "4", "RANK=4"),
        ("LOCAL_RANK", "2", "LOCAL_RANK=2"),
        ("LOCAL_WORLD_SIZE", "5", "LOCAL_WORLD_SIZE=5"),
        ("MASTER_PORT", "0", "MASTER_PORT=0"),
    ],
)
def test_nonsense_is_refused(name: str, value: str | None, message: str):
    environ = {key: text for key, text in {**ENVIRON, name: value}.items() if text is not None}
    with pytest.raises(UserError, match=message):
        Ranks.from_environ(environ)


def test_each_rank_gets_its_place_its_cores_and_the_arguments_as_they_are():
    program = (
        "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]) + '\\n', end='')"
    )
    arguments = ("a b", "$HOME", "${local_rank}", "$$", "--x=*")
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command(2, program, *arguments),
        capture_output=True,
        text=True,
        check=False,
        env=environ,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, _ in found] == [list(arguments)] * 2
    ranks = sorted((Ranks.from_environ(its) for _, its in found), key=lambda its: its.rank)
    assert [(its.rank, its.local_rank, its.world) for its in ranks] == [(0, 0, 2), (1, 1, 2)]
    assert all(its.agent_store and its.address == "127.0.0.1" for its in ranks)
    for _, its in found:
        assert 1 <= int(omp_threads(its)) <= max(1, os.cpu_count() // 2)


def test_exit_codes():
    ends = {
        "sys.exit(3 if rank == 1 else 0)": 1,
        "sys.exit(2) if rank == 0 else time.sleep(1000)": 2,
        "sys.exit(2) if rank == 1 else time.sleep(1000)": 1,
        "os.kill(os.getpid(), 9) if rank == 2 else time.sleep(1000)": 1,
    }
    start = "import os, sys, time\nrank = int(os.environ['RANK'])\n"
    programs = [["-c", start + end] for end in ends]
    launches = (
        "import sys\nfrom livetalk_kernels.runtime.ranks.launch import launch\n"
        f"codes = [launch(program, nproc=3) for program in {programs}]\n"
        f"sys.exit(0 if codes == {list(ends.values())} else str(codes))"
    )
    with Run([sys.executable, "-c", launches]) as run:
        run.process.wait(60)
        assert run.seconds_to_end(1) < 1
        assert run.stderr() == "error: rank 2 was killed by SIGKILL while it started\n"


CAREFUL = """
import os, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print("ready" + os.environ["RANK"], flush=True)
while not asked or sys.argv[1:] == ["deaf"]:
    time.sleep(0.05)
child.kill()
sys.exit(130 if os.environ["RANK"] == "0" else 0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_lets_the_ranks_end(number: signal.Signals):
    with Run(command(2, CAREFUL)) as run:
        wait_for(run, "ready0"), wait_for(run, "ready1")
        run.process.send_signal(number)
        assert run.seconds_to_end(20) < 5
        assert (run.process.returncode, run.stderr()) == (130, "")


def test_two_signals_kill_the_ranks_and_their_children():
    with Run(command(2, CAREFUL, "deaf")) as run:
        wait_for(run, "ready0"), wait_for(run, "ready1")
        assert len(run.seen) == 5
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert len(run.alive()) == 5
        run.process.send_signal(signal.SIGINT)
        assert run.seconds_to_end(20) < 3
        assert run.process.returncode == 130
        assert run.stderr() == "killed; talk.mp4.part is left\n"


def test_a_signal_before_the_ranks_are_ready_prints_no_traceback():
    with Run(command(2, "import time; print('ready', flush=True); time.sleep(1000)")) as run:
        wait_for(run, "ready")
        run.process.send_signal(signal.SIGINT)
        assert run.seconds_to_end(20) < 5
        assert (run.process.returncode, run.stderr()) == (130, "interrupted\n")
