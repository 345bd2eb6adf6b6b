"""A thread that makes the chunks of all of a pipeline's sessions, one chunk at a time.

In a team of ranks every step of a chunk is an exchange with the others, so there must be one order
of all work: opening a session, a whole chunk, closing a session. Rank 0's producer thread decides
that order, and the others follow it. Sessions alternate; opening and closing take priority.
"""

import atexit
import threading
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import torch

from livetalk_kernels.errors import NumericsError
from livetalk_kernels.heap import KeptMemory
from livetalk_kernels.runtime.openmp import release_helpers
from livetalk_kernels.runtime.ranks.signals import end_now

from .stats import Phase, no_phase

PATIENCE = 2.0
"""Seconds by which a chunk that nobody is waiting for may delay the end of the program."""
_INTERRUPTED = 130


class Source(ABC):
    """A session from its producer's point of view; `Producer.changed` guards its fields.

    Attributes:
        number: Identifies the session among those of its producer.
        left: Whether nobody takes frames any more.
        opened: Whether `open` has succeeded.
        released: Whether its memory is free; nothing is made any more.
        error: What has ended it.
        shared: Whether the other ranks are in the middle of the same work.
    """

    number: int = -1
    left: bool = False
    opened: bool = False
    released: bool = False
    error: BaseException | None = None
    shared: bool = False

    @abstractmethod
    def open(self) -> None:
        """Compute what all chunks need."""

    @abstractmethod
    def ready(self) -> bool:
        """Return whether a chunk can be made and has room; called with the lock held."""

    @abstractmethod
    def make(self) -> None:
        """Make a whole chunk."""

    @abstractmethod
    def close(self) -> None:
        """Tell the other ranks to free the session's memory."""

    @abstractmethod
    def free(self) -> None:
        """Free this rank's memory; called once, after `close` if that was possible."""

    def leave(self) -> None:
        """Note that nobody takes frames any more; called with the lock held."""
        self.left = True


class Producer:
    """Works for any number of sessions, in a thread that lives while one of them is open.

    An error in one session ends that session. An error in work that ranks do together ends all
    sessions, since nobody knows how far the others have come; NaN and Inf are not such errors,
    since all ranks detect them at the same point.

    Attributes:
        changed: Guards all sessions' states, and signals their changes. It is re-entrant: the
            garbage collector leaves a session that nobody closed, between any two lines.
    """

    def __init__(self, phase: Phase = no_phase) -> None:
        """Prepare; no thread yet. ``phase`` marks what the thread is doing, for a watchdog."""
        self.changed = threading.Condition()
        self._phase = phase
        self._opening: deque[Source] = deque()
        self._open: deque[Source] = deque()  # in order of their turns
        self._numbers = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._memory: KeptMemory | None = None

    def open(self, source: Source) -> None:
        """Open a session, before the next chunk is begun; return once it is open.

        Raises:
            Exception: Raised by `Source.open`, or by what has ended all sessions before.
        """
        release_helpers()  # this thread has loaded a model, and now waits
        with self.changed:
            if self._error is not None:
                raise self._error
            source.number, self._numbers = self._numbers, self._numbers + 1
            self._opening.append(source)
            if self._thread is None:
                self._start()
            self.changed.notify_all()
            try:
                self.changed.wait_for(lambda: source.opened or source.released)
            except BaseException:  # Ctrl-C
                self.leave(source)
                raise
        if source.error is not None:
            raise source.error

    def leave(self, source: Source) -> None:
        """Close a session without waiting."""
        with self.changed:
            source.leave()
            self.changed.notify_all()

    def close(self, source: Source) -> None:
        """Close a session; return once its memory is free, on this rank."""
        with self.changed:
            thread = self._thread
            self.leave(source)
            self.changed.wait_for(lambda: source.released)
        self._join(thread)

    def end(self) -> None:
        """Close all sessions; consumers that still take frames get an error.

        Raises:
            Exception: What has ended all sessions before.
        """
        with self.changed:
            thread = self._thread
            for source in (*self._opening, *self._open):
                source.error = source.error or RuntimeError("the pipeline has ended the session")
                source.leave()
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self._busy)
        self._join(thread)
        if self._error is not None:
            raise self._error

    @property
    def _busy(self) -> bool:
        return bool(self._open or self._opening)

    def _join(self, thread: threading.Thread | None) -> None:
        """Wait for an idle thread to end, unless it gets work."""
        if thread is None:
            return
        with self.changed:
            self.changed.wait_for(lambda: self._thread is not thread or self._busy)
            ended = self._thread is not thread
        if ended:
            thread.join()

    def _start(self) -> None:
        threads = torch.get_num_threads()  # OpenMP's number is each thread's own
        # A daemon: if the program ends without closing a session, nobody waits for its chunk.
        self._thread = threading.Thread(
            target=self._run, args=(threads,), name="producer", daemon=True
        )
        atexit.register(self._at_exit)
        self._thread.start()

    def _at_exit(self) -> None:
        """Stop before the program's end takes torch down under a thread that computes with it."""
        with self.changed:
            thread = self._thread
            for source in (*self._opening, *self._open):
                source.leave()
            self.changed.notify_all()
        if thread is not None:
            thread.join(PATIENCE)
            if thread.is_alive():
                end_now(_INTERRUPTED)

    # In the thread.

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            while self._turn():
                pass
        except BaseException as error:  # whatever it is, nobody must wait forever
            self._fail(error)

    def _turn(self) -> bool:
        """Do the next piece of work; return False if none is left."""
        found = self._next()
        if found is None:
            return False
        source, work = found
        with self._phase("turn"):
            work(source)
        return True

    def _next(self) -> tuple[Source, Callable[[Source], None]] | None:
        """Wait for work."""
        with self.changed:
            while True:
                if source := next((s for s in self._open if s.left), None):
                    return source, self._release
                if self._opening:
                    return self._opening[0], self._admit
                if not self._open:
                    self._end_thread()
                    return None
                if source := next((s for s in self._open if s.ready()), None):
                    self._open.remove(source)
                    self._open.append(source)
                    return source, self._make
                release_helpers()
                with self._phase("wait"):
                    self.changed.wait()

    def _admit(self, source: Source) -> None:
        if not source.left:
            self._attempt(source, source.open)
        with self.changed:
            self._opening.popleft()
            self._open.append(source)
            source.opened = source.error is None
            self.changed.notify_all()
        if source.error is not None:
            self._release(source)

    def _make(self, source: Source) -> None:
        if self._memory is None:
            self._memory = KeptMemory()
        self._attempt(source, source.make)
        self._memory.review()
        if source.error is not None:
            self._release(source)

    def _attempt(self, source: Source, work: Callable[[], None]) -> None:
        """Do work for a session; keep an error for whoever takes its frames.

        Raises:
            Exception: An error that the other ranks do not have.
        """
        try:
            work()
        except Exception as error:
            if source.shared and not isinstance(error, NumericsError):
                raise
            source.shared = False
            traceback.clear_frames(error.__traceback__)  # the session's tensors are in them
            source.error = error

    def _release(self, source: Source) -> None:
        source.close()
        source.free()
        with self.changed:
            self._open.remove(source)
            source.released = True
            self.changed.notify_all()

    def _end_thread(self) -> None:
        """Mark the thread as gone; called with the lock held."""
        atexit.unregister(self._at_exit)
        self._thread = None
        self.changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """End all sessions."""
        traceback.clear_frames(error.__traceback__)
        with self.changed:
            self._error = error
            self._end_thread()
            ended = [*self._opening, *self._open]
            self._opening.clear()
            self._open.clear()
            for source in ended:
                source.error = source.error or error
        for source in ended:
            source.free()
        with self.changed:
            for source in ended:
                source.released = True
            self.changed.notify_all()
