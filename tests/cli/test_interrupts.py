"""Signals: the first one stops, held code ends first, the second one kills."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from livetalk_kernels.runtime.ranks.signals import ENDING, SignalThread, ended_like_ctrl_c
from livetalk_model.cli.interrupts import Interrupts, Wish


def send(number: signal.Signals = signal.SIGINT) -> None:
    """Send Ctrl-C to this process; the handler has run when this returns."""
    os.kill(os.getpid(), number)


def in_a_process(function: Callable[[], None]) -> tuple[int, str]:
    """Run a function in a forked process; return its exit code and what it wrote to stderr."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writer, 2)
        function()
        os._exit(99)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()  # until the process is gone
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@pytest.mark.parametrize("number", ENDING)
def test_first_signal_raises(number: signal.Signals):
    with Interrupts(), pytest.raises(KeyboardInterrupt):
        send(number)


def test_held_code_ends_first():
    done = []
    with Interrupts() as interrupts:
        interrupts.hold()
        send()
        done.append("written")
        with pytest.raises(KeyboardInterrupt):
            interrupts.release()
        interrupts.release()
    assert done == ["written"]


def test_nothing_is_raised_after_a_last_hold():
    with Interrupts() as interrupts:
        interrupts.hold()
        send()
    with pytest.raises(KeyboardInterrupt):  # Python's own handler is back
        send()


@pytest.mark.parametrize("number", ENDING)
def test_an_ignored_signal_stays_ignored(number: signal.Signals):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with ended_like_ctrl_c(), Interrupts():
            send(number)
            send(number)
        send(number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ENDING)
def test_outside_of_that_all_are_as_ctrl_c(number: signal.Signals):
    before = [signal.getsignal(each) for each in ENDING]
    with pytest.raises(KeyboardInterrupt), ended_like_ctrl_c():
        send(number)
    assert [signal.getsignal(each) for each in ENDING] == before


@pytest.mark.parametrize("second", ENDING)
def test_the_second_signal_kills(second: signal.Signals):
    def run() -> None:
        with Interrupts() as interrupts:
            interrupts.left = "talk.mp4.1.part is left"
            interrupts.hold()
            send()
            time.sleep(0.2)
            send(second)
            time.sleep(10)

    begin = time.monotonic()
    assert in_a_process(run) == (130, "killed; talk.mp4.1.part is left\n")
    assert time.monotonic() - begin < 5


def test_an_echo_of_the_first_signal_is_no_second_one():
    def run() -> None:
        with Interrupts() as interrupts:
            interrupts.hold()
            send()
            send(signal.SIGTERM)
            time.sleep(0.3)
        os._exit(7)

    assert in_a_process(run) == (7, "")


def test_a_watchdog_outside_receives_the_signals_too():
    received = []
    with SignalThread(lambda: received.append("outer")):
        stopped: list[str] = []
        with (
            Interrupts(stopping=lambda: stopped.append("asked")) as interrupts,
            pytest.raises(KeyboardInterrupt),
        ):
            interrupts.hold()
            send()
            interrupts.release()
        end = time.monotonic() + 5
        while not received and time.monotonic() < end:
            time.sleep(0.01)
    assert received == ["outer"] and stopped == ["asked"]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_wish_is_noticed_and_the_second_kills():
    def wait() -> None:
        with Wish("stopping after this update", "the last checkpoint stands") as asked:
            assert not asked()
            send()
            os.write(2, b"asked\n" if asked() else b"not asked\n")
            time.sleep(0.3)
            send()
            time.sleep(10)

    code, text = in_a_process(wait)
    assert code == 130
    assert sorted(text.splitlines()) == [
        "asked", "killed; the last checkpoint stands", "stopping after this update",
    ]  # fmt: skip


def test_a_wish_gives_the_signals_back():
    with Wish("stopping", ""):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        send()
