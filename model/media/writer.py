"""A frame writer in its own thread, so that encoding video overlaps making frames."""

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
"""Maximum number of queued frames: two chunks."""
LANE = "video"
"""Name of the thread's lane in the timeline."""


class BackgroundWriter:
    """Writes frames like a `FrameWriter`, a little later.

    As a context manager it does what its writer would: when the block ends, for whatever reason,
    queued frames are written and the file is completed. Only the thread uses the writer. An error
    of the writer ends it, and is raised once, by the next call that needs it.

    Attributes:
        path: The final file.
        part: The file written until then.
    """

    def __init__(
        self, writer: FrameWriter, *, capacity: int = CAPACITY, timeline: Timeline | None = None
    ) -> None:
        """Start the thread.

        Args:
            writer: Writer to use; nobody else may use it from now on.
            capacity: Maximum number of queued frames, at least 1; `write` waits for room.
            timeline: Records writing, and waiting for it.
        """
        assert capacity >= 1, capacity
        self.path: Path = writer.path
        self.part: Path = writer.part
        self._writer = writer
        self._capacity = capacity
        self._timeline = timeline or Timeline(torch.device("cpu"))
        self._changed = threading.Condition()  # guards everything below
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()  # frames in it, what to do
        self._count = 0  # frames queued or being written
        self._ending = False  # whether frames are no longer accepted
        self._deadline = float("inf")  # for writing queued frames, on the monotonic clock
        self._error: BaseException | None = None
        self._ended = self._kept = self._closed = False
        # A daemon: if the process ends without closing it, nobody waits for the file.
        self._thread = threading.Thread(target=self._run, name="video writer", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames in the file so far; final once it is closed."""
        return self._writer.frames

    @property
    def warnings(self) -> list[str]:
        """Problems with the finished file, one line each."""
        return self._writer.warnings

    def write(self, frames_NHWC: np.ndarray) -> None:
        """Append frames, which must not be modified afterwards; waits while too many are queued.

        Args:
            frames_NHWC: Uint8 [n, height, width, 3], RGB, an array (or a tensor on the CPU).

        Raises:
            Exception: Raised by `FrameWriter.write`, for these frames or earlier ones.
            RuntimeError: `rescue` has completed the file.
        """
        with self._timeline.host_range("write"):
            passed = self._timeline.flow("frames")

            def write() -> None:
                passed.arrive(LANE)
                self._writer.write(frames_NHWC)

            self._send(len(frames_NHWC), write)

    def write_sound(self, samples_N: np.ndarray) -> None:
        """Append live sound; see `FrameWriter.write_sound`. It does not count as a frame.

        Raises:
            Exception: As `write`.
            RuntimeError: `rescue` has completed the file.
        """
        self._send(0, lambda: self._writer.write_sound(samples_N))

    def close(self) -> None:
        """Write queued frames and complete the file.

        Raises:
            Exception: Raised by the writer; what it could complete is kept.
        """
        self._end()
        self._raise_once()

    def rescue(self, seconds: float) -> bool:
        """Complete the file with what is there, from another thread, whatever the owner is doing.

        Queued frames are written for half of the time; the rest is for completing the file.

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
        """Return the writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, whatever ends the block."""
        self.close()

    def _send(self, count: int, work: Callable[[], None]) -> None:
        """Queue work once there is room."""
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
        """Return whether there is room, or never will be; oversized batches need an empty queue."""
        room = self._count + count <= self._capacity or not self._count
        return room or self._ended or self._ending

    def _end_soon(self) -> None:
        """Signal the thread to complete the file."""
        self._ending = True
        self._changed.notify_all()

    def _end(self) -> None:
        """Wait until the thread has completed the file."""
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
        """Write what is queued, then complete the file as requested; runs in the thread."""
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
        except BaseException as failure:  # whatever it is, the owner must not wait forever
            error = failure
            try:
                self._writer.close()  # harmless if the failure was the writer's own
            except BaseException as another:
                error = another
        with self._changed:
            self._error, self._ended = error, True
            self._waiting.clear()
            self._changed.notify_all()

    def _next(self) -> tuple[int, Callable[[], None]] | None:
        """Return the next queued work; None when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ending)
            late = time.monotonic() > self._deadline
            if not self._waiting or late:
                return None
            return self._waiting.popleft()
