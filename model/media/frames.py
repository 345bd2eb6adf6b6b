"""Writes frames to a file that keeps what is finished: the writers' base class, and raw .npy."""

import io
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import PartFile, check_output, output_error

_NPY_HEADER_BYTES = 128


class WholeWrites(io.FileIO):
    """A part file that receives each write completely or not at all, and none after a failure.

    FFmpeg does not notice that a full disk has cut a write short, and its own files ignore the
    failure of a final write.

    Attributes:
        failure: The error that every write raises, if any.
    """

    def __init__(self, file: PartFile) -> None:
        """Write to a part file, which outlives this stream."""
        super().__init__(file.fileno(), "r+", closefd=False)
        self.failure: BaseException | None = None

    def write(self, data: Any, /) -> int:
        """Write all bytes of a buffer; return their number."""
        if self.failure is not None:
            raise self.failure
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except BaseException as error:  # including Ctrl-C: part of it may have been written
            self.failure = error
            raise
        return count


class FrameWriter(ABC):
    """A file that grows frame by frame and gets its name at the end.

    It is written as a `PartFile`. Finished frames are kept: as a context manager the file is
    completed when the block ends, for whatever reason, and if the disk is full, it is truncated to
    what plays. Without a single frame nothing is left.

    Attributes:
        path: The final file.
        part: The file written until then, ``NAME.<random>.part``.
        frames: Frames written so far; at the end, frames in the file.
        warnings: Problems with the finished file, one line each.
    """

    def __init__(self, path: Path | str, height: int, width: int, suffix: str) -> None:
        """Check the size and the location, and create the part file.

        Args:
            path: The file; an existing one is replaced when this one is complete.
            height: Rows per frame.
            width: Columns per frame.
            suffix: Suffix that this writer supports.

        Raises:
            UserError: The file cannot be written there.
        """
        if height < 1 or width < 1:
            raise ValueError(f"frame size {height}x{width}: both must be positive")
        self.path = check_output(path, (suffix,))
        self.frames = 0
        self.warnings: list[str] = []
        self._size = (height, width, 3)
        self._file = PartFile(self.path)
        self.part = self._file.part
        self._resources = ExitStack()
        self._open = True
        try:
            self._raw = self._resources.enter_context(WholeWrites(self._file))
        except BaseException as error:
            raise self._given_up(error) from None

    def write(self, frames_NHWC: np.ndarray) -> None:
        """Append frames; after a failure the file is completed with those written before.

        Args:
            frames_NHWC: Uint8 [n, height, width, 3], RGB, an array (or a tensor on the CPU).

        Raises:
            UserError: The disk is full, or the sound cannot be read any further.
        """
        frames_NHWC = np.asarray(frames_NHWC)
        if frames_NHWC.dtype != np.uint8 or frames_NHWC.shape[1:] != self._size:
            raise ValueError(
                f"frames must be uint8 [n, {', '.join(map(str, self._size))}], "
                f"not {frames_NHWC.dtype} {list(frames_NHWC.shape)}"
            )
        assert self._open, "the writer is closed"
        try:
            for frame_HWC in frames_NHWC:
                self._put(np.ascontiguousarray(frame_HWC))
                self.frames += 1
                self._keep_up()
        except Exception as error:  # not Ctrl-C: whoever catches that closes the writer
            raise self._ended_by(error) from None

    def write_sound(self, samples_N: np.ndarray) -> None:  # noqa: B027 (most formats have none)
        """Append live sound; ignored by writers without live sound.

        Args:
            samples_N: Float32 [n], mono, 16 kHz, full scale +-1. Sound beyond the frames written
                so far waits for them; what still waits at `close` is cut.
        """

    def close(self) -> None:
        """Complete the file and give it its name; without a single frame, leave nothing.

        Raises:
            UserError: The disk is full; the message says how many frames are kept.
        """
        if not self._open:
            return
        if not self.frames:
            self.abort()
            return
        frames = self.frames
        try:
            self._finish()
            self._resources.close()
        except BaseException as error:  # including Ctrl-C
            failure = self._cut_short(error)
            if self.frames < frames or not isinstance(self._raw.failure, OSError):
                raise failure from None
            return  # no frame is lost
        self._commit()

    def abort(self) -> None:
        """Remove what was written; harmless after `close`."""
        if not self._open:
            return
        self._open = False
        with suppress(Exception):  # what cannot be flushed will be removed anyway
            self._resources.close()
        self._file.discard()

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

    def _given_up(self, error: BaseException) -> BaseException:
        """Remove what was written; return the error to raise."""
        self.abort()
        return output_error(self.path, error) if isinstance(error, OSError) else error

    def _ended_by(self, error: Exception) -> BaseException:
        """Complete the file after a failed write; return the error to raise."""
        if self._raw.failure is not None:
            return self._cut_short(error)
        try:
            self.close()
        except BaseException as failure:  # the disk is full as well; it says what is kept
            return failure
        return error

    def _cut_short(self, error: BaseException) -> BaseException:
        """Keep what plays of a file that cannot be completed; return the error to raise."""
        error = self._raw.failure = self._raw.failure or error  # block further writes
        with suppress(Exception):  # the same failure again
            self._resources.close()
        try:
            self.frames = self.frames and self._salvage()
            if not self.frames:
                return self._given_up(error)
            self._commit()
        except (OSError, UserError) as failure:
            self._open = False
            return failure if isinstance(failure, UserError) else self._left(failure)
        if isinstance(error, OSError):
            kept = f"the first {self.frames} frames are kept"
            return UserError(f"{output_error(self.path, error)}; {kept}")
        return error

    def _commit(self) -> None:
        """Give the file its name.

        Raises:
            UserError: It cannot be renamed; the message says where the frames are.
        """
        self._open = False
        try:
            self._file.commit()
        except OSError as error:
            raise self._left(error) from None

    def _left(self, error: OSError) -> UserError:
        """Build the error to raise if the part file must remain under its name."""
        part = self._file.part
        return UserError(f"{output_error(self.path, error)}; what was written is left in {part}")

    @abstractmethod
    def _put(self, frame_HWC: np.ndarray) -> None:
        """Write frame number `frames`, uint8 [height, width, 3], contiguous."""

    def _keep_up(self) -> None:  # noqa: B027 (only a sound track needs it)
        """Bring what accompanies the frames up to frame number `frames`."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what is outstanding."""

    @abstractmethod
    def _salvage(self) -> int:
        """Truncate the part file, after a failed write, to what plays.

        Returns:
            Number of frames left.

        Raises:
            OSError: It cannot be truncated.
        """


class NpyWriter(FrameWriter):
    """Raw frames as one uint8 array [T, height, width, 3] in NumPy's .npy format, version 1.0."""

    def __init__(self, path: Path | str, height: int, width: int) -> None:
        """Open the file, ``*.npy``.

        Raises:
            UserError: The file cannot be written there.
        """
        super().__init__(path, height, width, ".npy")
        try:
            self._raw.write(self._header())
        except BaseException as error:
            raise self._given_up(error) from None

    def _header(self) -> bytes:
        """Build the header for `frames` frames; its length is constant, so it can be rewritten."""
        shape = (self.frames, *self._size)
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
        start = b"\x93NUMPY\x01\x00"
        room = _NPY_HEADER_BYTES - len(start) - 2
        return start + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n"

    def _put(self, frame_HWC: np.ndarray) -> None:
        self._raw.write(frame_HWC.data)

    def _finish(self) -> None:
        self._seal(self._raw)

    def _salvage(self) -> int:
        with self._file.part.open("r+b") as file:
            self._seal(file)
        return self.frames

    def _seal(self, file: BinaryIO | io.FileIO) -> None:
        """Cut off a partial frame, which a failure leaves, and write the header."""
        file.truncate(_NPY_HEADER_BYTES + self.frames * int(np.prod(self._size)))
        file.seek(0)
        file.write(self._header())
