"""Kills or stops a rank of a real run in a chosen phase, and times how long the rest take."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from ..environment import Ranks
from ..runtime.ranks.heartbeat import Beat, Board

LIMITS = {signal.SIGKILL: 5.0, signal.SIGSTOP: 20.0}
"""Seconds within which all processes must be gone."""

WRITE = "write"
LEADING = ("prepare", WRITE)
"""Phases that rank 0 runs alone."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The outcome of a fault.

    Attributes:
        phase: Phase that the rank was in, as last reported to the others.
        signal: Name of the signal.
        rank: Rank that received it.
        seconds: From the signal until no process of the run remained; infinity if some did.
        code: Exit code of the command.
        message: The first stderr line that begins with ``error:``, else the last line.
        stderr: The whole of stderr.
        named: Whether it is the only error, and names the rank, its host and the phase.
        orphans: Command lines of processes that remained, and were then killed.
    """

    phase: str
    signal: str
    rank: int
    seconds: float
    code: int
    message: str
    stderr: str
    named: bool
    orphans: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all were gone in time, with an error that names the rank, its host and phase."""
        limit = LIMITS[signal.Signals[self.signal]]
        return self.seconds <= limit and self.code != 0 and self.named and not self.orphans


class Run:
    """A command that starts ranks, observed from outside; a context manager that cleans up.

    Attributes:
        process: The command's process.
        ranks: Rank -> process, as far as found.
        seen: Every process of the run, including those that have ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start the command; its output goes to files, so that nothing blocks on a reader."""
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdout=self._out, stderr=self._err, cwd=cwd, env=env
        )
        self.seen: set[psutil.Process] = {psutil.Process(self.process.pid)}
        self.ranks: dict[int, psutil.Process] = {}
        self._one: Ranks | None = None  # any of them: the way to their store
        self._board: Board | None = None

    def __enter__(self) -> "Run":
        """Return the run itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill whatever remains."""
        for process in self.alive():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait(30)
        self._out.close()
        self._err.close()

    def look(self) -> None:
        """Update the list of processes."""
        for process in list(self.seen):
            with suppress(psutil.Error):
                self.seen.update(process.children(recursive=True))
        for process in self.seen - set(self.ranks.values()):
            with suppress(psutil.Error):
                ranks, parent = Ranks.from_environ(process.environ()), process.parent()
                # A rank's own children inherit its environment, but so does their parent.
                if ranks and not (parent and Ranks.from_environ(parent.environ())):
                    self.ranks.setdefault(ranks.rank, process)
                    self._one = ranks

    def beats(self) -> dict[int, Beat]:
        """Return each rank's last heartbeat."""
        if self._board is None:
            self.look()
            self._board = Board(self._one) if self._one is not None else None
        return self._board.beats() if self._board is not None else {}

    def wait_for(self, condition: Callable[[dict[int, Beat]], bool], timeout: float) -> None:
        """Wait until the heartbeats meet a condition.

        Raises:
            TimeoutError: They never did, or the command ended first.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(psutil.Error, RuntimeError):
                if condition(self.beats()):
                    self.look()
                    return
            time.sleep(0.01)
        raise TimeoutError(f"the run did not get there: {self.stderr()[-2000:]}")

    def alive(self) -> list[psutil.Process]:
        """List the run's processes that are not gone; zombies count as gone."""
        self.look()
        found = []
        for process in self.seen:
            with suppress(psutil.Error):
                if process.pid == self.process.pid:
                    # Not by status: the first thread may be a zombie before the others have ended.
                    gone = self.process.poll() is not None
                else:
                    gone = process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
                if not gone:
                    found.append(process)
        return found

    def seconds_to_end(self, timeout: float) -> float:
        """Wait until all are gone; return the seconds taken, infinity if some remain."""
        begin = time.monotonic()
        while self.alive():
            if time.monotonic() > begin + timeout:
                return float("inf")
            time.sleep(0.02)
        return time.monotonic() - begin

    def stdout(self) -> str:
        """Return the stdout so far."""
        return _text(self._out)

    def stderr(self) -> str:
        """Return the stderr so far."""
        return _text(self._err)


def run_fault(
    command: Sequence[str],
    phase: str,
    number: signal.Signals,
    rank: int,
    *,
    world: int,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
    settle: float = 0.0,
    start: float = 120.0,
    end: float = 40.0,
) -> Fault:
    """Run a command, send a signal to one of its ranks in a phase, and observe the outcome.

    Args:
        command: Command that starts the ranks, itself or through torchrun.
        phase: One of the watchdog's phases. For those that rank 0 runs alone (`LEADING`), rank 0 is
            observed, whichever rank gets the signal.
        number: SIGKILL or SIGSTOP.
        rank: Rank that gets it; negative counts from the end.
        world: Number of ranks.
        cwd: Working directory of the command.
        env: Its environment, by default this process's.
        folder: Where the video is written, by a thread that runs during all phases: the signal for
            ``write`` is sent when its file has grown.
        settle: Seconds to wait after the phase first occurs; the signal is sent when it next
            occurs.
        start: Timeout in seconds for reaching the phase.
        end: Seconds to wait for the end before killing what remains.

    Raises:
        TimeoutError: The phase never came.
    """
    rank %= world
    looked_at = 0 if phase in LEADING else rank
    watched = phase == WRITE and folder is not None
    written = 0

    def there(beats: dict[int, Beat]) -> bool:
        if not watched:
            return looked_at in beats and beats[looked_at].phase == phase
        assert folder is not None
        nonlocal written
        before, written = written, sum(file.stat().st_size for file in folder.glob("*.part"))
        return 0 < before < written

    with Run(command, cwd=cwd, env=env) as run:
        run.wait_for(there, start)
        if settle:
            time.sleep(settle)
            run.wait_for(there, start)
        run.ranks[rank].send_signal(number)
        seconds = run.seconds_to_end(end)
        orphans = tuple(" ".join(_command(process)) for process in run.alive())
        stderr = run.stderr()
        code = 0 if orphans else run.process.wait(end)
    lines = stderr.strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error:")]
    message = errors[0] if errors else lines[-1]
    where = phase if rank == looked_at and not watched else r"\w+"
    named = re.search(rf"^error: rank {rank} on \S+ .*in phase {where}\b", message)
    return Fault(
        phase=phase,
        signal=number.name,
        rank=rank,
        seconds=seconds,
        code=code,
        message=message,
        stderr=stderr,
        named=named is not None and len(errors) == 1,
        orphans=orphans,
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _text(file: IO[bytes]) -> str:
    # Not with seek: the position is shared with the processes that write.
    return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")
