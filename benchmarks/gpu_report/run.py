"""Runs one part of ``make gpu-report`` within its time, and leaves none of its processes behind.

A part may start ranks, compilers and servers in separate sessions, which no signal to its process
group reaches. So its family is tracked while it runs: children, their children, and whatever is in
a session that one of them leads. One whose parent ended unnoticed is recognised by a mark in its
environment. Linux only: it reads ``/proc``.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from livetalk_kernels.runtime.ranks.signals import catch, give_back

LOOK = 0.2  # seconds between updates of the family
GRACE = 5.0  # seconds that a part has after SIGINT to write its results and end
LAST_SECONDS = 10.0  # for killed processes to disappear
PROC = Path("/proc")
MARK = "LIVETALK_GPU_REPORT_PART"  # in the environment of a part and all that it starts

DONE, FAILED, TIMEOUT, INTERRUPTED = "done", "failed", "timeout", "interrupted"


@dataclass(frozen=True)
class Process:
    """One entry of ``/proc``; its start time distinguishes it from a later one with its id."""

    pid: int
    parent: int
    session: int
    start: int
    dead: bool


def processes() -> dict[int, Process]:
    """List all processes by id."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                line = (folder / "stat").read_text(encoding="utf-8", errors="replace")
                # The name, in parentheses, may contain anything.
                state, parent, _, session, *rest = line.rpartition(")")[2].split()
                found[int(folder.name)] = Process(
                    int(folder.name), int(parent), int(session), int(rest[15]), state in "ZX"
                )
    return found


class Family:
    """A process and its known descendants."""

    def __init__(self, root: int, mark: str | None = None) -> None:
        """Track ``root``, which leads its own session and has not been waited for.

        Args:
            root: Its process id.
            mark: Its value of `MARK`, which no other process has.
        """
        self._starts = {root: processes()[root].start}
        self._mark = None if mark is None else f"{MARK}={mark}".encode()

    def look(self, *, orphans: bool = False) -> list[int]:
        """Find new members; return the living ones.

        Args:
            orphans: Include those recognised only by the mark; reads all environments.
        """
        every, known = processes(), self._starts
        if orphans:
            known |= {p.pid: p.start for p in every.values() if self._marked(p.pid)}

        def member(pid: int) -> bool:
            return pid in known and (pid not in every or every[pid].start == known[pid])

        grown = True
        while grown:
            fresh = {
                p.pid: p.start
                for p in every.values()
                if not member(p.pid) and (member(p.parent) or member(p.session))
            }
            known |= fresh
            grown = bool(fresh)
        return [pid for pid, p in every.items() if member(pid) and not p.dead]

    def kill(self) -> None:
        """Kill all, until none remains."""
        end = time.monotonic() + LAST_SECONDS
        while (living := self.look(orphans=True)) and time.monotonic() < end:
            for pid in living:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK / 4)

    def _marked(self, pid: int) -> bool:
        if self._mark is None:
            return False
        try:
            return self._mark in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:  # gone, or another user's
            return False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: ``done``, ``failed``, ``timeout`` or ``interrupted``.
        code: Exit code; negative: the signal that ended it.
        seconds: Duration.
    """

    status: str
    code: int
    seconds: float


def run_command(
    command: Sequence[str], *, log: Path, limit: float, cwd: Path, environment: Mapping[str, str]
) -> Outcome:
    """Run a command; when its time is up, send SIGINT, and soon SIGKILL to its family.

    Args:
        command: The command.
        log: File for everything it prints.
        limit: Timeout in seconds.
        cwd: Working directory.
        environment: Environment of the process.

    Returns:
        How it ended, with none of its processes left; ``interrupted`` if a signal asked this
        process to end meanwhile.
    """
    begin, mark = time.monotonic(), uuid.uuid4().hex
    asked: list[int] = []
    # Recorded, not raised: raised before the family is known, it would leave the family alive.
    before = catch(lambda number, frame: asked.append(number))
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**environment, MARK: mark},
                start_new_session=True,
            )
        family = Family(process.pid, mark)
        _wait(process, family, begin + limit, asked)
        late = process.poll() is None
        if late:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            _wait(process, family, time.monotonic() + GRACE)
        family.kill()
        code = process.wait()
    finally:
        give_back(before)
    status = INTERRUPTED if asked else TIMEOUT if late else FAILED if code else DONE
    return Outcome(status=status, code=code, seconds=time.monotonic() - begin)


def _wait(
    process: "subprocess.Popen[bytes]", family: Family, until: float, asked: Sequence[int] = ()
) -> None:
    """Wait until the process ends, its time is up, or a signal asks for its end."""
    while process.poll() is None and time.monotonic() < until and not asked:
        family.look()
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(LOOK, max(0.0, until - time.monotonic())))


def tail(log: Path, lines: int) -> list[str]:
    """Return the last lines of a log; empty without one."""
    if not log.is_file():
        return []
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
