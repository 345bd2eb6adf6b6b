"""Progress: lines where there is no terminal, a bar where there is one."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from cli_tools import FAST, generate

from livetalk_model.cli import progress as module
from livetalk_model.cli.progress import progress, training_progress
from livetalk_model.train.loop.loop import Progress


@pytest.fixture
def session() -> SimpleNamespace:
    """A stream that has made 3 s of video in 2 s."""
    stats = SimpleNamespace(frames=75, fps=25.0, elapsed=2.0)
    return SimpleNamespace(options=SimpleNamespace(fps=25.0), stats=stats)


def test_lines_without_a_terminal(session, capsys):
    with progress(10.0, session, line_seconds=0) as advance:
        advance(1)
        advance(74)
    assert capsys.readouterr().err.splitlines() == [
        "1 frame, 0.0 s of video, 1.50 x real time",
        "75 frames, 3.0 s of video, 1.50 x real time",
    ]


def test_a_line_every_ten_seconds(session, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress(10.0, session) as advance:
        for _ in range(70):
            now[0] += 0.5
            advance(4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["80", "160", "240"]


def test_a_short_run_prints_nothing(portrait, speech, out, capfd):
    command = ("--portrait", portrait, "--audio", speech, "--output", out / "x.mp4", *FAST)
    assert generate(*command) == 0
    assert capfd.readouterr().err == ""


def test_bar_on_a_terminal(session, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with progress(10.0, session, line_seconds=0) as advance:
        advance(75)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "75 frames" in shown and "1.50 x real time" in shown and "━" in shown
    assert "of video" not in shown


def test_lines_of_a_training(capsys):
    with training_progress() as report:
        for step, left in ((1, 12345.0), (2, 900.0), (3, 0.0)):
            numbers = {"critic loss": 0.25, "critic norm": 3.0}
            report(Progress(step=step, steps=3, seconds=1.5, left=left, numbers=numbers))
    assert capsys.readouterr().err.splitlines() == [
        "update 1 of 3, 1.50 s, 3 h 26 min left; critic loss 0.25",
        "update 3 of 3, 1.50 s, 0 s left; critic loss 0.25",
    ]
