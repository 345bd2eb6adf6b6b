"""A frame writer in a thread of its own, so that encoding video runs beside making frames."""

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from livetalk_kernels.runtime.timeline import Timeline

from ..config import NEW_FRAMES
from .frames import FrameWriter

CAPACITY = 2 * NEW_FRAMES
"""Frames that wait at most: two chunks."""
LANE = "video"
"""Name of the thread's lane in the timeline."""


class BackgroundWriter:
    """Writes frames as a `FrameWriter` does, a little later.

    As a context manager it does what its writer would: at the end of the block, whatever ends it,
    the frames that wait are written and the file is finished. The thread alone uses the writer. An
    error of its own ends it, and is raised once, by the next call that needs it.

    Attributes:
        path: The file to be.
        part: What is written until then.
    """

    def __init__(
        self, writer: FrameWriter, *, capacity: int = CAPACITY, timeline: Timeline | None = None
    ) -> None:
        """Start the thread.

        Args:
            writer: What to write with; nobody else may use it from now on.
            capacity: Frames that may wait, at least 1; `write` waits for room.
            timeline: Where the writing, and the waiting for it, is recorded.
        """
        assert capacity >= 1, capacity
        self.path: Path = writer.path
        self.part: Path = writer.part
        self._writer = writer
        self._capacity = capacity
        self._timeline = timeline or Timeline(torch.device("cpu"))
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()  # frames in it, what to do
        self._count = 0  # frames that wait or are being written
        self._ending = False  # no more frames are taken
        self._deadline = float("inf")  # of writing what waits, on the monotonic clock
        self._error: BaseException | None = None
        self._ended = self._kept = self._closed = False
        # A daemon: where the process ends without closing it, nobody waits for the file.
        self._thread = threading.Thread(target=self._run, name="video writer", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames in the file so far; once it is closed, those that it holds."""
        return self._writer.frames

    @property
    def warnings(self) -> list[str]:
        """What is wrong with the file at the end, one line each."""
        return self._writer.warnings

    def write(self, frames_NHWC: np.ndarray) -> None:
        """Append frames, which must not be changed afterwards; waits while too many wait.

        Args:
            frames_NHWC: Uint8 [n, height, width, 3], RGB, an array (or a tensor on the CPU).

        Raises:
            Exception: What `FrameWriter.write` raised, of these frames or earlier ones.
            RuntimeError: `rescue` has finished the file.
        """
        with self._timeline.host_range("write"):
            passed = self._timeline.flow("frames")

            def write() -> None:
                passed.arrive(LANE)
                self._writer.write(frames_NHWC)

            self._send(len(frames_NHWC), write)

    def write_sound(self, samples_N: np.ndarray) -> None:
        """Append live sound; see `FrameWriter.write_sound`. It counts as no frame.

        Raises:
            Exception: As `write`.
            RuntimeError: `rescue` has finished the file.
        """
        self._send(0, lambda: self._writer.write_sound(samples_N))

    def close(self) -> None:
        """Write what waits and finish the file.

        Raises:
            Exception: What the writer raised; what it could finish is kept.
        """
        self._end()
        self._raise_once()

    def rescue(self, seconds: float) -> bool:
        """From another thread: finish the file with what is there, whatever the owner is doing.

        Frames that wait are written for half of the time; the rest is for the end of the file.

        Args:
            seconds: How long this may take.

        Returns:
            Whether the file is complete, or there was no frame to keep.
        """
        deadline = time.monotonic() + seconds
        if not self._changed.acquire(timeout=seconds):
            return False
        try:
            self._deadline = deadline - seconds / 2
            self._end_soon()
        finally:
            self._changed.release()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._kept

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, whatever ends the block."""
        self.close()

    def _send(self, count: int, work: Callable[[], None]) -> None:
        """Put work into the queue once there is room."""
        assert not self._closed, "the writer is closed"
        with self._changed:
            if not self._has_room(count):
                with self._timeline.host_range("wait for the video"):
                    self._changed.wait_for(lambda: self._has_room(count))
            self._raise_once()
            if self._ended or self._ending:
                raise RuntimeError(f"{self.path}: the file is closed and takes no more frames")
            self._waiting.append((count, work))
            self._count += count
            self._changed.notify_all()

    def _has_room(self, count: int) -> bool:
        """Or nobody makes any; frames that are too many by themselves need an empty queue."""
        room = self._count + count <= self._capacity or not self._count
        return room or self._ended or self._ending

    def _end_soon(self) -> None:
        """Tell the thread to finish the file."""
        self._ending = True
        self._changed.notify_all()

    def _end(self) -> None:
        """Wait until the thread has finished the file."""
        if self._closed:
            return
        with self._changed:
            self._end_soon()
        with self._timeline.host_range("wait for the video"):
            self._thread.join()
        self._closed = True

    def _raise_once(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        """The thread: write what comes, then end the file as told."""
        error: BaseException | None = None
        try:
            while (work := self._next()) is not None:
                count, write = work
                with self._timeline.host_range("write frames", LANE):
                    write()
                with self._changed:
                    self._count -= count
                    self._changed.notify_all()
            with self._timeline.host_range("finish the file", LANE):
                self._writer.close()
            self._kept = True
        except BaseException as failure:  # whatever it is, the owner must not wait for ever
            error = failure
            try:
                self._writer.close()  # harmless where the failure was the writer's own
            except BaseException as another:
                error = another
        with self._changed:
            self._error, self._ended = error, True
            self._waiting.clear()
            self._changed.notify_all()

    def _next(self) -> tuple[int, Callable[[], None]] | None:
        """The next work in the queue; None when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            late = time.monotonic() > self._deadline
            if not self._waiting or late:
                return None
            return self._waiting.popleft()
