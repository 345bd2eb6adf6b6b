"""Signals: the first one stops, held code ends first, later ones do not disturb the clean-up."""

import os
import signal

import pytest

from livetalk_model.cli.interrupts import Interrupts


def send() -> None:
    """Ctrl-C to ourselves; the handler has run when this returns."""
    os.kill(os.getpid(), signal.SIGINT)


def test_first_signal_raises_and_later_ones_do_not():
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            send()
        send()
        send()


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


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            send()
    finally:
        signal.signal(signal.SIGINT, before)
