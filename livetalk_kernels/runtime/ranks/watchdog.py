"""Ends all ranks soon after one is lost, and reports which, where and in which phase.

Every rank has a `Watchdog`: a thread that publishes a heartbeat twice a second and monitors those
of the others. A rank is

- *lost* when its process is gone, as seen at once by the other ranks on its machine;
- *stopped* when it sent no heartbeat for `SILENCE` seconds;
- *hung* when it stays in a phase longer than that phase's deadline.

The first to notice writes a verdict to the store, and whoever reads it exits through `os._exit`,
since its main thread may be blocked inside gloo or NCCL forever. Torchrun's process hosts the
store, so it survives the loss of any rank; a lost store means a lost launcher, and also ends the
rank. All clocks advance by at most a second per look, so that a suspended machine accuses nobody.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Self

from ...environment import Ranks
from ...errors import CommError, NumericsError, UserError
from .heartbeat import Beat, Board, Deadlines, Verdict, first_beat, process_state
from .signals import Before, SignalThread, catch, leave_quickly, say

INTERVAL = 0.5
SILENCE = 10.0
"""Seconds without a heartbeat from a stopped process."""
FAR_SILENCE = 15.0
"""The same for a process on another machine, of which nothing else is known."""
BUSY_SILENCE = 60.0
"""The same for a running process: something holds the interpreter's lock, such as a slow import."""
RESCUE = 2.0
"""Seconds that ``on_failure`` may take."""
UNANSWERED = 30.0
"""Seconds without a response from the store."""
STUCK = 5.0  # seconds after a signal until a blocked main thread is given up
_LEAVE = 10.0  # seconds that a main thread has to leave after its own error
INTERRUPTED = 130
_BAD_INPUT = 2
_DEAD, _STOPPED = "ZXx", "Tt"
_RUNTIME = __package__.rpartition(".")[0]
# On a GPU, waiting for other ranks happens where frames are copied to the host.
_TALKING = "torch.distributed", f"{_RUNTIME}.comm", f"{_RUNTIME}.host_copies"


class Watchdog:
    """This rank's monitor of all ranks. Enter it in the main thread, before any group is created.

    The end of the ``with`` block depends on its cause. Normal end: this rank has finished, which
    the others accept. KeyboardInterrupt (only in rank 0, see below): the other ranks leave. An
    error: if another rank's loss is the cause, that is reported instead and the process ends here;
    else all ranks end with this one's message and exit code, and the error propagates, to be
    printed.

    SIGINT, SIGTERM and SIGHUP: in rank 0 the first one raises KeyboardInterrupt in the main thread,
    and if that is blocked the process still ends, after 5 s. The second one ends it at once. The
    other ranks forward the request to rank 0, and leave when it does.

    Attributes:
        on_failure: Called in its own thread before `os._exit` ends the process; it has `RESCUE`
            seconds. Rank 0 closes its video there. May be set at any time.
        code: Exit code of a rank whose block ends without an exception. If rank 0 sets it to
            nonzero, the others leave too.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        deadlines: Deadlines,
        on_failure: Callable[[], object] | None = None,
        patience: float = STUCK,
    ) -> None:
        """Prepare; nothing happens until it is entered.

        Args:
            ranks: This rank's place.
            deadlines: Deadlines of the phases.
            on_failure: See above.
            patience: Seconds that rank 0 has after a signal, unless its handler stops it.
        """
        self._patience = patience
        self.on_failure = on_failure
        self.code = 0
        self._ranks, self._deadlines = ranks, deadlines
        self._parent = os.getppid()
        # Thread -> phase, start on the watchdog's clock. One thread may make frames, another write.
        self._phases: dict[int, tuple[str, float]] = {threading.get_ident(): ("start", 0.0)}
        self._clock = 0.0
        self._looked = time.monotonic()
        self._rounds = 0
        self._beat = first_beat()
        self._beats: dict[int, Beat] = {}
        self._seen: dict[int, tuple[int, float]] = {}  # rank -> number of the beat, since when
        self._verdict: Verdict | None = None
        self._own: Verdict | None = None
        self._signals = 0
        self._signalled = 0.0
        self._asked = 0
        self._stopping = False
        self._finish: int | None = None
        self._handlers: Before = {}

    def __enter__(self) -> Self:
        """Connect to the store, install signal handlers, start monitoring.

        Raises:
            RuntimeError: The store does not answer.
        """
        self._board = Board(self._ranks)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._listener = SignalThread(self._count_signal)
        # The launcher sends SIGINT, torchrun's agent SIGTERM, whatever the inherited handlers.
        self._handlers = catch(self._caught, also_ignored=(signal.SIGINT, signal.SIGTERM))
        self._listener.__enter__()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_the_store, name="store", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish, or report to the others why not."""
        if self._stopping and not isinstance(error, KeyboardInterrupt):
            self._leave_stopped()
            raise KeyboardInterrupt  # whatever was raised on the way out does not matter
        if isinstance(error, KeyboardInterrupt):
            self._leave_stopped()
        elif isinstance(error, Exception):
            self._report(error)
        else:
            self._end(self.code)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Be in a phase within the block; its deadline counts from here.

        Each thread has its own phases. The others see the one whose deadline is next.

        Args:
            name: One of the attributes of `Deadlines`.
        """
        self._deadlines.of(name)  # must exist
        thread = threading.get_ident()
        before = self._phases.get(thread)
        self._enter(thread, name)
        yield
        # Not after an error: then the phase says what failed.
        if before is None:
            del self._phases[thread]
        else:
            self._enter(thread, "other" if before[0] == "start" else before[0])

    def stopping(self) -> None:
        """Prepare for the main thread to stop on a signal; called by signal handlers.

        Does not return if a rank is lost: torchrun's agent then sends SIGTERM, which does not ask
        to stop, and the watchdog ends this process.
        """
        for _ in range(2):  # the first look may have begun before the loss
            rounds, end = self._rounds, time.monotonic() + 1
            self._wake()
            while self._rounds == rounds and time.monotonic() < end:
                time.sleep(0.01)
        if self._verdict is not None:
            time.sleep(_LEAVE)
        self._stopping = True

    def await_verdict(self, seconds: float = FAR_SILENCE + 5) -> None:
        """Wait because another rank seems to be lost; called in the main thread on a CommError.

        Call it before any cleanup (a writer would remove its file): if a rank is lost, this does
        not return, and ``on_failure`` is called while nothing else runs.

        Raises:
            KeyboardInterrupt: A signal requested a stop, which is why the others have gone.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._stopping:
                raise KeyboardInterrupt
            self._wake()
            time.sleep(0.1)

    # In the main thread and those with phases. Takes no lock: a signal handler may run between any
    # two lines.

    def _enter(self, thread: int, name: str) -> None:
        self._phases[thread] = (name, self._clock)
        self._wake()

    def _phase(self) -> tuple[str, float, int]:
        """Return, for the thread whose deadline is next: phase, seconds in it, the thread."""
        clock, phases = self._clock, list(self._phases.items())
        return max(
            ((name, clock - start, thread) for thread, (name, start) in phases),
            key=lambda phase: phase[1] - self._deadlines.of(phase[0]),
        )

    def _wake(self) -> None:
        with suppress(OSError):  # full: it will wake up anyway
            os.write(self._writer, b".")

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._ranks.rank == 0 and not self._stopping:
            self.stopping()
            raise KeyboardInterrupt

    def _report(self, error: Exception) -> None:
        """Report an error to the others, unless they have already reported its cause."""
        if isinstance(error, CommError):
            self.await_verdict()
        elif not isinstance(error, (UserError, NumericsError)):
            self.await_verdict(2.0)
        elif self._ranks.rank:
            self.await_verdict(1.0)  # if all ranks detect it, rank 0 reports it
        where = f"rank {self._ranks.rank} on {self._beat.host}"
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        line = f"error: {where} failed in phase {self._phase()[0]}: {text}"
        code = 1
        if isinstance(error, UserError):
            line, code = f"error: {error}", _BAD_INPUT
        error.add_note(f"This was {where}, in phase {self._phase()[0]}.")
        self._own = Verdict(
            rank=self._ranks.rank, line=line, code=code, printed_on=self._beat.machine
        )
        self._end(code)

    def _leave_stopped(self) -> None:
        self._stopping = True
        self._end(INTERRUPTED)

    def _end(self, code: int) -> None:
        """Let the watchdog publish its last status; after a failure nothing may delay us."""
        self._finish = code
        self._wake()
        self._thread.join(_LEAVE)
        self._listener.__exit__(None, None, None)
        for number, handler in self._handlers.items():
            # Torchrun's agent may try to end us, but we are about to end.
            signal.signal(number, signal.SIG_IGN if code else handler)
        if code:
            leave_quickly(code)
            guard = threading.Timer(_LEAVE, os._exit, (code,))
            guard.daemon = True
            guard.start()

    # In the watchdog's thread.

    def _watch(self) -> None:
        try:
            while self._round():
                if select.select([self._reader], [], [], INTERVAL)[0]:
                    os.read(self._reader, 4096)
                    time.sleep(0.02)  # phases may change often
        except RuntimeError:  # torch's errors of the store
            host = self._beats.get(0)
            if self._finish is None and not (host and host.finished):  # rank 0 may host the store
                self._lose_launcher()

    def _round(self) -> bool:
        """Check once; return whether to continue."""
        now = time.monotonic()
        self._clock += min(now - self._looked, 1.0)
        self._looked = now
        if os.getppid() != self._parent:
            self._lose_launcher()
        # Processes first: one that has left since then announced it before, and we read that next.
        states = {rank: process_state(beat.pid) for rank, beat in self._others().items()}
        finish = self._finish
        self._publish(finished=finish is not None and self._own is None)
        self._beats = self._board.beats()
        verdict = self._board.verdict()
        if verdict is None and self._own is not None:
            verdict = self._board.claim(self._own)
            if verdict == self._own:
                return False  # the main thread prints
        if self._ranks.rank and self._board.stopped():  # before missing others who have left
            os._exit(0)
        if verdict is None and finish is None and not self._stopping:
            verdict = self._judge(states)
            verdict = verdict and self._board.claim(verdict)
        if verdict is not None:
            self._leave(verdict)
        if self._ranks.rank == 0:
            self._stop_if_asked(finish)
        self._rounds += 1
        return finish is None

    def _others(self) -> dict[int, Beat]:
        """Return the other ranks of this machine that have arrived."""
        return {
            rank: beat
            for rank, beat in self._beats.items()
            if beat.machine == self._beat.machine and rank != self._ranks.rank
        }

    def _publish(self, *, finished: bool) -> None:
        phase, seconds, thread = self._phase()
        self._beat = replace(
            self._beat,
            number=self._beat.number + 1,
            phase=phase,
            seconds=seconds,
            talking=self._talking(thread),
            asked=self._signals > 0,
            finished=finished,
        )
        self._board.publish(self._ranks.rank, self._beat)

    def _talking(self, thread: int) -> bool:
        """Return whether a thread is in our or torch's code that communicates with other ranks."""
        frame = sys._current_frames().get(thread)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            if name.startswith(_TALKING):
                return True
            frame = frame.f_back
        return False

    def _judge(self, states: dict[int, tuple[str, int] | None]) -> Verdict | None:
        """Determine what is wrong with any rank, as far as visible from here."""
        found: list[tuple[bool, float, Verdict]] = []
        for rank in range(self._ranks.world):
            beat = self._beats.get(rank)
            if beat is None:
                if self._clock > self._deadlines.start:
                    line = f"error: rank {rank} has not started within {self._deadlines.start:g} s"
                    return Verdict(rank=rank, line=line)
                continue
            if beat.finished:
                continue
            number, since = self._seen.get(rank, (-1, 0.0))
            if number != beat.number:
                self._seen[rank] = (beat.number, since := self._clock)
            silent = self._clock - since
            who, phase = f"error: rank {rank} on {beat.host}", f"in phase {beat.phase}"
            letter, limit = "", FAR_SILENCE
            if rank in states:
                state = states[rank]
                letter = state[0] if state and state[1] == beat.born else "X"
                limit = SILENCE if letter in _STOPPED else BUSY_SILENCE
            if letter and letter in _DEAD:
                line = f"{who} was lost {phase} (killed by a signal, or crashed)"
                return Verdict(rank=rank, line=line)
            if silent > limit:
                line = f"{who} has not moved for {silent:.0f} s {phase}"
                return Verdict(rank=rank, line=line, kill=True)
            deadline = self._deadlines.of(beat.phase)
            late = beat.seconds + silent - deadline
            if late > (3.0 if beat.talking else 0.0):  # those waiting for others are blamed last
                line = f"{who} took longer than its deadline of {deadline:g} s {phase}"
                found.append((not beat.talking, late, Verdict(rank=rank, line=line)))
        return max(found, key=lambda late: late[:2])[2] if found else None

    def _stop_if_asked(self, finish: int | None) -> None:
        """Rank 0: tell the others to leave; also leave if the main thread does not return."""
        if not self._signals and any(beat.asked for beat in self._beats.values()):
            self._asked += 1
            if self._asked == 3:  # our own signal may be on its way
                os.kill(os.getpid(), signal.SIGINT)
        patience = _LEAVE if self._stopping else self._patience
        stuck = self._signals and self._clock > self._signalled + patience
        if self._stopping or stuck or finish:
            self._board.stop()
        if stuck:
            say("interrupted")
            self._rescue()
            os._exit(INTERRUPTED)

    def _leave(self, verdict: Verdict) -> None:
        """End this process because of a verdict."""
        self._verdict = verdict
        guilty = self._others().get(verdict.rank)
        if guilty and verdict.kill:
            _kill(guilty)
        machine = self._beat.machine
        # Decided by the verdict alone: with `first`, the failed rank would have to get there before
        # those who read its verdict.
        if verdict.printed_on != machine and self._board.first(machine):
            say(verdict.line)
        self._rescue()
        if guilty:
            # It has the same verdict, but may be unable to read it, or busy with its rescue.
            end = time.monotonic() + 2 * RESCUE
            while _runs(guilty) and time.monotonic() < end:
                time.sleep(0.05)
            _kill(guilty)
        if self._ranks.world > self._ranks.local_world:
            time.sleep(
                3 * INTERVAL
            )  # the store may go with us, and the other machines must read it first
        os._exit(verdict.code)

    def _lose_launcher(self) -> None:
        """End this process because the store is gone; print without asking who should."""
        where = f"{self._ranks.address}:{self._ranks.port}"
        line = f"error: the launcher ({where}) was lost in phase {self._phase()[0]}"
        self._verdict = Verdict(rank=-1, line=line)
        if self._ranks.local_rank == 0:
            say(line)
        self._rescue()
        os._exit(1)

    def _rescue(self) -> None:
        if self.on_failure is not None:
            thread = threading.Thread(target=_quietly, args=(self.on_failure,), daemon=True)
            thread.start()
            thread.join(RESCUE)

    # In threads of their own.

    def _count_signal(self) -> None:
        """Handle a signal."""
        self._signals += 1
        self._signalled = self._clock
        if self._ranks.rank == 0 and self._signals > 1 and self._verdict is None:
            os._exit(INTERRUPTED)
        self._wake()

    def _watch_the_store(self) -> None:
        """Leave if a look takes too long: the store's machine has vanished without notice."""
        rounds, silent = -1, 0.0
        while self._thread.is_alive():
            time.sleep(1)
            parent = process_state(self._parent)  # Ctrl-Z stops the launcher, which is fine
            if self._rounds != rounds or self._verdict or (parent and parent[0] in _STOPPED):
                rounds, silent = self._rounds, 0.0
            silent += 1
            if silent > UNANSWERED:
                self._lose_launcher()


def _quietly(function: Callable[[], object]) -> None:
    with suppress(Exception):
        function()


def _runs(beat: Beat) -> bool:
    state = process_state(beat.pid)
    return state is not None and state[1] == beat.born and state[0] not in _DEAD


def _kill(beat: Beat) -> None:
    if _runs(beat):
        with suppress(OSError):
            os.kill(beat.pid, signal.SIGKILL)
