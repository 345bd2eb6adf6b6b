"""Whatever happens to a rank, all of them end soon, and one line says which, where and at what."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.ranks.heartbeat import Deadlines
from livetalk_kernels.testing.faults import Run, run_fault

TOY = str(Path(__file__).with_name("toy_ranks.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
HOST = socket.gethostname()


def toy(
    folder: Path, fault: str = "", *, seconds: float = 1.0, world: int = 2, by: tuple[str, ...] = ()
) -> list[str]:
    """The command that runs the toy."""
    return [sys.executable, *by, TOY, str(folder), fault, str(seconds), str(world)]


def reach(run: Run, phase: str, world: int = 2) -> None:
    """Wait until all ranks are in a phase."""
    run.wait_for(
        lambda beats: len(beats) == world and {beat.phase for beat in beats.values()} == {phase},
        timeout=120,
    )


def test_deadlines_are_chosen_by_phase():
    deadlines = Deadlines().scaled(2).with_choices(["denoise=7", "wait=90", "load=inf"])
    assert (deadlines.of("denoise"), deadlines.wait, deadlines.decode) == (7.0, 90.0, 600.0)
    assert deadlines.load == float("inf")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("think=3", "no phase think; phases are start, load"),
        ("load", "write PHASE=SECONDS"),
        ("load=soon", "write PHASE=SECONDS"),
        ("load=0", "more than 0"),
        ("load=nan", "more than 0"),
    ],
)
def test_bad_deadlines_are_refused(choice: str, message: str):
    with pytest.raises(UserError, match=message):
        Deadlines().with_choices([choice])


def test_a_clean_run(tmp_path: Path):
    with Run(toy(tmp_path, seconds=0.2, world=3)) as run:
        assert run.process.wait(120) == 0
        assert run.seconds_to_end(1) < 1
        assert run.stderr() == ""
    assert [file.name for file in tmp_path.iterdir()] == ["video"]


def test_a_killed_rank(tmp_path: Path):
    fault = run_fault(toy(tmp_path, world=3), "denoise", signal.SIGKILL, -1, world=3)
    assert fault.passed, fault
    assert fault.stderr == (
        f"error: rank 2 on {HOST} was lost in phase denoise (killed by a signal, or crashed)\n"
    )
    assert (tmp_path / "kept").stat().st_size  # rank 0 had its time


def test_a_stopped_rank_under_plain_torchrun(tmp_path: Path):
    fault = run_fault(toy(tmp_path, by=TORCHRUN), "write", signal.SIGSTOP, 0, world=3)
    assert fault.passed, fault
    assert f"error: rank 0 on {HOST} has not moved for 10 s in phase write\n" in fault.stderr


@pytest.mark.parametrize("silent", [False, True], ids=["", "and_are_silent"])
def test_a_hung_rank_is_blamed_and_not_those_who_wait_for_it(silent: bool, tmp_path: Path):
    with Run(toy(tmp_path, "hang:1:decode", seconds=0.2, world=3)) as run:
        reach(run, "decode", 3)
        if silent:
            os.kill(run.beats()[2].pid, signal.SIGSTOP)
        assert 2 < run.seconds_to_end(30) < 17
        assert run.process.returncode == 1
        assert run.stderr() == (
            f"error: rank 1 on {HOST} took longer than its deadline of 2 s in phase decode\n"
        )
    assert (tmp_path / "kept").is_file()


def test_an_error_in_one_rank_ends_all(tmp_path: Path):
    with Run(toy(tmp_path, "error:1:prepare", seconds=0.2)) as run:
        assert run.process.wait(120) == 1
        assert run.seconds_to_end(1) < 1
        assert run.stderr().count("Traceback") == 1 and "RuntimeError: a bug" in run.stderr()
        assert f"This was rank 1 on {HOST}, in phase prepare." in run.stderr()


@pytest.mark.parametrize("fault", ["user:0", "user:-1", "late:0", "late:-1"])
def test_bad_input_is_reported_once(fault: str, tmp_path: Path):
    with Run(toy(tmp_path, f"{fault}:load")) as run:
        assert run.process.wait(120) == 2
        assert run.seconds_to_end(1) < 1
        assert run.stderr() == "error: bad file; take another one\n"


def test_ctrl_c_finishes_the_file(tmp_path: Path):
    with Run(toy(tmp_path, seconds=30.0)) as run:
        reach(run, "load")
        run.process.send_signal(signal.SIGINT)
        assert run.seconds_to_end(20) < 8
        assert (run.process.returncode, run.stderr()) == (130, "interrupted\n")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_sigterm_ends_a_rank_that_waits_in_cpp(tmp_path: Path):
    with Run(toy(tmp_path, "hang:1:prepare", seconds=0.2)) as run:
        reach(run, "prepare")
        run.process.send_signal(signal.SIGTERM)
        assert run.seconds_to_end(20) < 10
        assert (run.process.returncode, run.stderr()) == (130, "interrupted\n")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path):
    with Run(toy(tmp_path, "child:1:load")) as run:
        reach(run, "load")
        time.sleep(0.5)
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        run.process.send_signal(signal.SIGINT)
        assert run.seconds_to_end(20) < 3
        assert (run.process.returncode, run.stderr()) == (130, "killed; video.part is left\n")
    assert [file.name for file in tmp_path.iterdir()] == ["video.part"]


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path):
    with Run(toy(tmp_path, seconds=30.0)) as run:
        reach(run, "load")
        run.process.kill()
        assert run.seconds_to_end(20) < 5
        # torch may warn first, where a rank was just reading from the launcher's store.
        assert "\nerror: the launcher (127.0.0.1:" in "\n" + run.stderr()
        assert "lost in phase load\n" in run.stderr()
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
