"""The writer in a thread: what is kept, errors, a full queue, rescue."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_kernels.testing.trace import trace_problems
from livetalk_model.media.frames import FrameWriter, NpyWriter
from livetalk_model.media.video import open_writer
from livetalk_model.media.writer import BackgroundWriter

PATIENCE = 20  # seconds, where a test waits for a thread


def frames(count: int, first: int = 0) -> np.ndarray:
    """Frames [count, 16, 16, 3] with their numbers as values."""
    numbers = np.arange(first, first + count, dtype=np.uint8)
    return np.broadcast_to(numbers[:, None, None, None], (count, 16, 16, 3)).copy()


class GatedWriter(NpyWriter):
    """Writes a frame when the gate is open; fails at frame ``broken``."""

    def __init__(self, path: Path, *, broken: int | None = None) -> None:
        super().__init__(path, 16, 16)
        self.gate, self.reached, self.broken = threading.Event(), threading.Event(), broken
        self.thread: threading.Thread | None = None

    def _put(self, frame_HWC: np.ndarray) -> None:
        self.thread = threading.current_thread()
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        if self.frames == self.broken:
            self._raw.failure = OSError(28, "No space left on device")
        super()._put(frame_HWC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.npy"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:  # a timer may be on its way out
        thread.join(1)
        assert not thread.is_alive(), thread


def test_all_frames_in_order_written_by_another_thread(path):
    inner = GatedWriter(path)
    inner.gate.set()
    with BackgroundWriter(inner, capacity=5) as writer:
        for first in range(0, 40, 4):
            writer.write(frames(4, first))
    assert writer.frames == 40 and writer.path == path
    assert np.array_equal(np.load(path), frames(40))
    assert inner.thread not in (None, threading.current_thread())
    writer.close()  # harmless
    with pytest.raises(AssertionError, match="closed"):
        writer.write(frames(1))


@pytest.mark.parametrize("suffix", [".npy", ".mp4"])
def test_the_file_is_the_same_as_without_a_thread(tmp_path, suffix):
    names = [tmp_path / f"{name}{suffix}" for name in ("here", "there")]
    writers: list[FrameWriter | BackgroundWriter] = [open_writer(names[0], 16, 16)]
    writers.append(BackgroundWriter(open_writer(names[1], 16, 16)))
    for each in writers:
        with each as writer:
            for first in range(0, 30, 4):
                writer.write(frames(4, first))
    assert names[0].read_bytes() == names[1].read_bytes()


def test_the_queue_is_bounded_in_frames(path):
    inner = GatedWriter(path)
    given: list[int] = []

    def give() -> None:
        for first in range(0, 12, 2):
            writer.write(frames(2, first))
            given.append(first)

    with BackgroundWriter(inner, capacity=4) as writer:
        owner = threading.Thread(target=give)
        owner.start()
        assert inner.reached.wait(PATIENCE)
        time.sleep(0.1)
        assert len(given) == 2  # one of them is being written
        inner.gate.set()
        owner.join(PATIENCE)
        writer.write(frames(9, 12))  # too many for the queue: they go alone
    assert np.array_equal(np.load(path), frames(21))


def test_ctrl_c_keeps_what_was_given(path):
    inner = GatedWriter(path)
    with pytest.raises(KeyboardInterrupt), BackgroundWriter(inner) as writer:
        writer.write(frames(8))
        threading.Timer(0.05, inner.gate.set).start()
        raise KeyboardInterrupt
    assert np.array_equal(np.load(path), frames(8))


def test_an_error_of_the_thread_is_raised_by_the_next_write_once(path):
    inner = GatedWriter(path, broken=2)
    inner.gate.set()
    with (
        pytest.raises(Exception, match="disk is full") as caught,
        BackgroundWriter(inner) as writer,
    ):
        while True:
            writer.write(frames(1))
    assert isinstance(caught.value, UserError)
    assert writer.frames == len(np.load(path)) == 2
    writer.close()


def test_an_error_of_the_thread_is_raised_by_close(path):
    inner = GatedWriter(path, broken=2)
    writer = BackgroundWriter(inner)
    writer.write(frames(4))
    inner.gate.set()
    with pytest.raises(Exception, match="disk is full"):
        writer.close()
    writer.close()
    assert writer.frames == 2 and np.array_equal(np.load(path), frames(2))


def test_a_full_queue_and_a_dead_thread_are_no_deadlock(path):
    inner = GatedWriter(path, broken=0)
    writer = BackgroundWriter(inner, capacity=2)
    writer.write(frames(2))
    assert inner.reached.wait(PATIENCE)
    threading.Timer(0.05, inner.gate.set).start()
    with pytest.raises(Exception, match="disk is full"):
        writer.write(frames(2))  # waits for room that nobody makes
    with pytest.raises(RuntimeError, match="takes no more frames"):
        writer.write(frames(2))
    writer.close()


def test_rescue_finishes_the_file_while_the_owner_waits(path):
    inner = GatedWriter(path)
    writer = BackgroundWriter(inner, capacity=4)
    refused: list[BaseException] = []

    def give() -> None:
        try:
            for first in range(0, 40, 4):
                writer.write(frames(4, first))
        except RuntimeError as error:
            refused.append(error)

    owner = threading.Thread(target=give)
    owner.start()
    assert inner.reached.wait(PATIENCE)
    threading.Timer(0.05, inner.gate.set).start()
    assert writer.rescue(10)
    owner.join(PATIENCE)
    assert refused and "takes no more frames" in str(refused[0])
    saved = np.load(path)
    assert len(saved) >= 4 and np.array_equal(saved, frames(len(saved)))
    writer.close()  # what the owner's block does with that error
    assert path.exists() and not writer.part.exists()


def test_what_is_rescued_is_not_removed_by_the_owner(path):
    inner = GatedWriter(path)
    writer = BackgroundWriter(inner)
    writer.write(frames(4))
    assert inner.reached.wait(PATIENCE)
    assert not writer.rescue(0.05)  # under way: the first piece is not written yet
    owner = threading.Thread(target=writer.close)
    owner.start()
    time.sleep(0.05)
    inner.gate.set()
    owner.join(PATIENCE)
    assert np.array_equal(np.load(path), frames(4))


def test_rescue_is_bounded_in_time(path):
    inner = GatedWriter(path)
    writer = BackgroundWriter(inner)
    writer.write(frames(8))
    assert inner.reached.wait(PATIENCE)
    begin = time.monotonic()
    assert not writer.rescue(0.2)  # the writer hangs
    assert time.monotonic() - begin < 2
    inner.gate.set()
    writer.close()
    assert len(np.load(path)) == 8  # one piece, begun in time, and the end of the file


def test_rescue_writes_waiting_frames_only_while_there_is_time(path):
    inner = GatedWriter(path)
    writer = BackgroundWriter(inner)
    for first in range(0, 32, 4):
        writer.write(frames(4, first))
    assert inner.reached.wait(PATIENCE)
    threading.Timer(0.4, inner.gate.set).start()
    assert writer.rescue(0.7)  # half of it is over when the first piece is written
    assert np.array_equal(np.load(path), frames(4))
    writer.close()


def test_rescue_after_the_end_and_after_an_error(path):
    inner = GatedWriter(path)
    inner.gate.set()
    with BackgroundWriter(inner) as writer:
        writer.write(frames(3))
    assert writer.rescue(1)
    broken = GatedWriter(path.with_name("y.npy"), broken=0)
    broken.gate.set()
    writer = BackgroundWriter(broken)
    writer.write(frames(1))
    assert not writer.rescue(5)
    with pytest.raises(UserError, match="disk is full"):
        writer.close()


def test_the_timeline_shows_the_writing(path):
    timeline = Timeline(torch.device("cpu"), capacity=100)
    with BackgroundWriter(NpyWriter(path, 16, 16), timeline=timeline) as writer:
        for first in range(0, 12, 4):
            writer.write(frames(4, first))
    trace = timeline.trace({})
    assert not trace_problems(trace)
    names = [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert names.count("write frames") == 3 and "finish the file" in names
