"""Starts several ranks of a program on this machine, as torchrun does, and waits for all to end.

The machinery is torchrun's own (``torch.distributed.elastic``), in a thread of this process: it
hosts the store through which the ranks find each other. Its signal handling is unsuitable (it waits
up to 30 s for a hung rank), so the main thread monitors the ranks.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ...environment import omp_threads
from ...machine import cpus, physical_cores
from .signals import Before, Echo, catch, give_back, leave_quickly, say

GRACE = 10.0
"""Seconds that ranks have to end after Ctrl-C; 14 B writes its last frames within one."""
STOPPED = 15.0
"""Seconds until a stopped rank is killed; the ranks' own watchdogs are quicker, if running."""
INTERRUPTED = 130
_BAD_INPUT = 2
_NOISY = ("torch.distributed.elastic", "torch.distributed.launcher")


def launch(arguments: Sequence[str], *, nproc: int, left: str = "", grace: float = GRACE) -> int:
    """Run ``python ARGUMENTS`` once per rank, wait for all, and end with the combined result.

    The ranks find each other through torchrun's environment variables, see `config.Ranks`. Each
    gets its share of the cores as ``OMP_NUM_THREADS``, unless the user has set it. The first
    SIGINT, SIGTERM or SIGHUP is forwarded as SIGINT and gives the ranks a grace period; the second
    one kills them. No process that a rank started remains in its session.

    Call it at the end of a program: if it returns a nonzero code, the program exits quickly (see
    `signals.leave_quickly`) with this code.

    Args:
        arguments: Arguments of ``python``, for example ``["-m", "package.module", "--flag"]``.
        nproc: Number of ranks, at least 1.
        left: Printed when the second signal kills: which file is left, and in which state.
        grace: Seconds that ranks have to end after the first signal.

    Returns:
        0 if all ranks returned 0; rank 0's code if that is 2 (bad input) or 130 (interrupted);
        else 1. The ranks have printed the reason, or this function has.
    """
    assert nproc >= 1
    command = [sys.executable, *arguments]
    if omp_threads() is None:  # torchrun would give each rank one thread, however many cores
        threads = max(1, min(cpus().usable, physical_cores()) // nproc)
        command = ["env", f"OMP_NUM_THREADS={threads}", *command]
    with tempfile.TemporaryDirectory(prefix="livetalk_") as folder, _silence(), _Asked() as asked:
        agent = _Agent(command, nproc, Path(folder))
        ranks = _Ranks(nproc)
        agent.start()
        forwarded, late = 0.0, False
        while agent.is_alive():
            agent.join(0.1)
            ranks.find()
            if asked.times and not forwarded and ranks.complete:
                ranks.interrupt()
                forwarded = time.monotonic()
            late = late or (forwarded > 0 and time.monotonic() > forwarded + grace)
            if asked.times > 1 or late or (forwarded and not ranks.ready):
                ranks.kill()
            ranks.kill_stopped()
        ranks.kill()
    if agent.error is not None:
        raise agent.error
    if asked.times > 1:
        say(f"killed{left and '; '}{left}")
        code = INTERRUPTED
    else:
        reported = ranks.ready and not late
        code = _exit_code(agent.codes, asked=asked.times > 0, reported=reported)
    if code:
        leave_quickly(code)
    return code


def _exit_code(codes: dict[int, int], *, asked: bool, reported: bool) -> int:
    """Combine the failed ranks' codes into one exit code; print what no rank could have printed."""
    first = codes.get(0, 0)
    if not codes:
        return 0
    if asked:
        if not reported:  # killed before a rank could report it
            say("interrupted")
        return first if first in (1, _BAD_INPUT) else INTERRUPTED
    if first in (_BAD_INPUT, INTERRUPTED):
        return first
    if all(code < 0 for code in codes.values()):
        # torch ends the others with SIGTERM, so any other signal is the cause.
        rank = next((r for r, code in codes.items() if code != -signal.SIGTERM), min(codes))
        name = signal.Signals(-codes[rank]).name
        say(f"error: rank {rank} was killed by {name} while it started")
    return 1


class _Agent(threading.Thread):
    """Torchrun's agent: starts the ranks, hosts their store, collects their exit codes.

    Outside the main thread it does not touch signals.
    """

    def __init__(self, command: Sequence[str], nproc: int, folder: Path) -> None:
        super().__init__(name="agent", daemon=True)
        self._command, self._nproc, self._folder = command, nproc, folder
        self.codes: dict[int, int] = {}  # of the ranks that failed; negative: the signal
        self.error: Exception | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self._nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # the system picks a free port, so runs do not collide
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(self._folder)),
        )
        # The agent expands ${local_rank} in arguments, and $$ to $.
        program, *arguments = (word.replace("$", "$$") for word in self._command)
        try:
            elastic_launch(config, program.replace("$$", "$"))(*arguments)
        except ChildFailedError as error:
            self.codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        except Exception as error:
            self.error = error


class _Ranks:
    """The rank processes: children of this process that did not exist before."""

    def __init__(self, nproc: int) -> None:
        self._nproc = nproc
        self._self = psutil.Process()
        self._others = set(self._self.children())
        self._found: list[psutil.Process] = []
        self._stopped: dict[int, float] = {}  # pid -> since when
        self.complete = False
        self.ready = False  # whether they could handle the interrupt when it came

    def find(self) -> None:
        """Look for them until all are found."""
        if not self.complete:
            self._found = [c for c in self._self.children() if c not in self._others]
            self.complete = len(self._found) == self._nproc

    def interrupt(self) -> None:
        """Send SIGINT once they can handle it: earlier, Python would print a traceback."""
        self.ready = all(_catches_sigterm(rank) for rank in self._found)
        for rank in self._found if self.ready else ():
            with suppress(psutil.Error):
                rank.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill them and everything in their sessions, including what ended ranks left there."""
        for rank in self._found:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.pid, signal.SIGKILL)

    def kill_stopped(self) -> None:
        """Kill ranks that have been stopped for long: they react to no signal but SIGKILL."""
        for rank in self._found:
            with suppress(psutil.Error):
                if rank.status() != psutil.STATUS_STOPPED:
                    self._stopped.pop(rank.pid, None)
                elif (
                    time.monotonic()
                    > self._stopped.setdefault(rank.pid, time.monotonic()) + STOPPED
                ):
                    rank.kill()


class _Asked:
    """Counts signals that ask this process to end; ignored ones stay ignored."""

    def __init__(self) -> None:
        self.times = 0
        self._echo = Echo()
        self._before: Before = {}

    def __enter__(self) -> "_Asked":
        self._before = catch(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        give_back(self._before)

    def _count(self, *_: object) -> None:
        self.times += not self._echo()


def _catches_sigterm(process: psutil.Process) -> bool:
    """Return whether a rank has its handlers: Python by itself catches SIGINT, but not SIGTERM."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # gone, or not Linux
        return not process.is_running() or not Path("/proc").is_dir()
    caught = next((line.split()[1] for line in status.splitlines() if "SigCgt" in line), "0")
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the agent's log lines from the user: the ranks report what happened, in one line."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    handler = logging.NullHandler()
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.propagate = propagate
            logger.removeHandler(handler)
