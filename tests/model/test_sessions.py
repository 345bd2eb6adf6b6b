"""Any number of sessions at the same time, on one rank and several: each is what it is alone."""

import dataclasses
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import CommError, NumericsError, UserError
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_kernels.runtime.halo import WHOLE
from livetalk_kernels.runtime.timeline import MAIN, Timeline
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.loading import ModelSource
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.chunk import ChunkGenerator, StreamOptions
from livetalk_model.stream.producer import Producer, Source
from livetalk_model.stream.production import QUEUED_CHUNKS
from livetalk_model.stream.session import Session
from livetalk_model.stream.stats import CHUNK as CHUNK_RANGE
from livetalk_model.stream.team import Team

RATE = 16000
SIZE = (32, 48)
CHUNK = 17920  # samples
LENGTHS = (2 * CHUNK + 5000, CHUNK + 100, CHUNK)  # of the sessions' sound
FRAMES = [64, 29, 28]
POISONED = 13  # a seed
LIMIT = 280.0
WORLDS = (1, 2, 3)


def speech(samples: int, seed: int) -> np.ndarray:
    t = np.arange(samples) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.01, samples)
    return (np.sin(t * (700 + 100 * seed)) * np.sin(t * 9) ** 2 * 0.3 + noise).astype(np.float32)


class Stage:
    """A pipeline on rank 0 with three avatars, and the frames of each alone."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        y, x = np.mgrid[:60, :50]
        pictures = [np.stack([4 * x, (3 + i) * y, 128 + 0 * x], -1) for i in range(len(LENGTHS))]
        self.avatars = [
            pipeline.prepare(Image.fromarray(picture.astype(np.uint8)), size=SIZE)
            for picture in pictures
        ]
        self.sounds = [speech(length, seed) for seed, length in enumerate(LENGTHS)]
        self.alone = [self.whole(index) for index in range(len(LENGTHS))]

    def open(
        self, index: int, timeline: Timeline | None = None, seed: int | None = None
    ) -> Session:
        options = StreamOptions(steps=1, seed=index if seed is None else seed)
        return self.pipeline.session(self.avatars[index], options=options, timeline=timeline)

    def whole(self, index: int) -> np.ndarray:
        """All frames of a session."""
        with self.open(index) as session:
            return self.rest(index, session)

    def rest(self, index: int, session: Session, start: int = 0) -> np.ndarray:
        """The frames of the sound from a sample on."""
        made = [*session.push(self.sounds[index][start:]), *session.finish()]
        return np.concatenate(made)

    def equal(self, index: int, *frames: Any) -> bool:
        return np.array_equal(np.concatenate(frames), self.alone[index])


def interleave(stage: Stage, count: int, seed: int) -> list[bool]:
    """Sessions that are opened, pushed to and taken from at random."""
    random = np.random.default_rng(seed)
    frames: list[list[np.ndarray]] = [[] for _ in range(count)]

    def life(index: int) -> Iterator[None]:
        """One session; between its steps others take theirs."""
        sound = stage.sounds[index]
        with stage.open(index) as session:
            while len(sound):
                step = int(random.integers(0, CHUNK))
                made, sound = session.push(sound[:step]), sound[step:]
                yield
                for _ in range(int(random.integers(0, 12))):
                    if (taken := next(made, None)) is None:
                        break
                    frames[index].append(taken)
                    yield
            for taken in session.finish():
                frames[index].append(taken)
                yield

    lives = [life(index) for index in range(count)]
    while lives:
        turn = lives[int(random.integers(len(lives)))]
        if next(turn, "over") == "over":
            lives.remove(turn)
    return [stage.equal(index, *taken) for index, taken in enumerate(frames)]


def interleaved(stage: Stage) -> list[bool]:
    """Two sessions, and three: whether each has the frames that it has alone."""
    assert not np.array_equal(stage.alone[0][:20], stage.alone[1][:20])
    return interleave(stage, 2, 0) + interleave(stage, 3, 1)


def threads(stage: Stage) -> list[bool]:
    """A thread for each session."""
    made: dict[int, np.ndarray] = {}

    def run(index: int) -> None:
        made[index] = stage.whole(index)

    running = [threading.Thread(target=run, args=(index,)) for index in range(len(LENGTHS))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return [stage.equal(index, made[index]) for index in range(len(LENGTHS))]


def opened(stage: Stage) -> dict[str, Any]:
    """B is opened while A is in the middle of a chunk, and has sound and takers for others."""
    device = stage.pipeline.device
    timelines = [Timeline(device, capacity=1000) for _ in range(2)]
    taken: list[np.ndarray] = []
    with stage.open(0, timelines[0]) as a:
        made = a.push(stage.sounds[0])
        taken.append(next(made))
        taker = threading.Thread(target=lambda: taken.extend(made))
        taker.start()
        asked = time.perf_counter_ns()
        with stage.open(1, timelines[1]) as b:
            taker.join()
            taken += a.finish()
            other = stage.rest(1, b)
    begun = min(r.begin_ns for r in timelines[1].ranges()[MAIN] if r.name == "prepare")
    chunks = [r for r in timelines[0].ranges()[MAIN] if r.name == CHUNK_RANGE]
    between = sum(r.begin_ns < begun and r.end_ns > asked for r in chunks)
    return {"chunks": between, "equal": stage.equal(0, *taken) and stage.equal(1, other)}


def paused(stage: Stage) -> dict[str, Any]:
    """A takes one piece and pauses, with sound for more chunks; B continues; A loses nothing."""
    with stage.open(0) as a, stage.open(1) as b:
        more = np.concatenate((stage.sounds[0], stage.sounds[0]))
        made = a.push(more)
        taken = [next(made)]
        other = stage.rest(1, b)
        begun = a.production._started
        taken += made
    first = np.concatenate(taken[:14])  # two chunks, in groups of four
    equal = np.array_equal(first, stage.alone[0][: len(first)]) and stage.equal(1, other)
    return {"begun": begun, "taken": sum(map(len, taken)), "equal": equal}


def broken_off(stage: Stage) -> list[bool]:
    """A ends in the middle of a chunk, in several ways; B continues."""
    with stage.open(1) as b:
        taken = list(b.push(stage.sounds[1][:CHUNK]))
        for how in ("closed", "forgotten", ValueError, KeyboardInterrupt):
            _break_off(stage, how)
        return [stage.equal(1, *taken, stage.rest(1, b, CHUNK))]


def _break_off(stage: Stage, how: str | type[BaseException]) -> None:
    if how == "forgotten":
        next(stage.open(0).push(stage.sounds[0]))
        return
    try:
        with stage.open(0) as a:
            for _ in a.push(stage.sounds[0]):
                if isinstance(how, str):
                    a.close()
                else:
                    raise how
    except (ValueError, KeyboardInterrupt):
        pass


def nan(stage: Stage) -> list[Any]:
    """In the last rank's part of A's first chunk arises a NaN."""
    said: list[Any] = []
    with stage.open(1) as b:
        taken = list(b.push(stage.sounds[1][:CHUNK]))
        with stage.open(0, seed=POISONED) as a:
            made = a.push(stage.sounds[0])
            try:
                next(made)
            except NumericsError as error:
                said.append(error.stage)
            try:
                a.push(stage.sounds[0])
            except RuntimeError as error:
                said.append("over" in str(error))
            said.append(next(made, None))
        said.append(stage.equal(1, *taken, stage.rest(1, b, CHUNK)))
    return said


GENERATORS: weakref.WeakSet[ChunkGenerator] = weakref.WeakSet()


def watch_generators(*, poison: bool) -> None:
    """In this process: note them; if wanted, the decoder of those with a certain seed gives NaN."""
    start = ChunkGenerator.__init__

    def init(self: Any, dit: Any, vae: Any, avatar: Any, options: Any, **named: Any) -> None:
        GENERATORS.add(self)
        if poison and options.seed == POISONED:
            calls = named["calls"]

            def broken(*given: Any, **also: Any) -> torch.Tensor:
                return calls.decode_step(*given, **also) * math.nan

            named["calls"] = dataclasses.replace(calls, decode_step=broken)
        start(self, dit, vae, avatar, options, **named)

    ChunkGenerator.__init__ = init  # type: ignore[method-assign]


def memory(stage: Stage) -> list[int]:
    """Generators in memory; followers count as well, at the end of every chunk."""
    alive = []
    sound = stage.sounds[2][:CHUNK]

    def chunk(session: Session) -> None:
        list(session.push(sound))
        alive.append(len(GENERATORS))

    a, b, c = map(stage.open, range(3))
    chunk(a)  # three are open
    c.close()  # has never made a frame
    chunk(b)
    a.close()
    chunk(b)
    del a, b, c  # b was never closed
    for _ in range(100 if stage.pipeline.team.size == 1 else 5):
        stage.open(0).close()
    last = stage.open(0)
    chunk(last)
    stage.pipeline.end()  # with a session open
    try:
        list(last.push(sound))
    except RuntimeError as error:
        assert "ended" in str(error)
        alive.append(len(GENERATORS))
    assert not producers()
    return alive


def producers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "producer"]


SCRIPTS: tuple[Callable[[Stage], Any], ...] = (
    interleaved, threads, opened, paused, broken_off, nan, memory,
)  # fmt: skip


def load(comm: Communicator) -> Pipeline:
    source = ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
        backend=None, reuse=True,
    )  # fmt: skip
    return source.load_pipeline(source.load_preparer(), Team(comm))


def play(comm: Communicator) -> dict[str, Any]:
    """All scripts, one after the other; on followers, generators in memory after each chunk."""
    pipeline = load(comm)
    watch_generators(poison=comm.rank == comm.size - 1)
    if comm.rank:
        alive: list[int] = []
        pipeline.follow(ended=lambda count: alive.append(len(GENERATORS)))
        return {"alive": [*alive[-4:], len(GENERATORS)]}
    stage = Stage(pipeline)
    return {"frames": list(map(len, stage.alone))} | {s.__name__: s(stage) for s in SCRIPTS}


@pytest.fixture(scope="module", params=WORLDS)
def played(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return what all scripts produced on a number of ranks."""
    return run_ranks(play, request.param, timeout=LIMIT)


EXPECTED = {
    "frames": FRAMES,
    "interleaved": [True] * 5,
    "threads": [True] * 3,
    "opened": {"chunks": 1, "equal": True},
    "paused": {"begun": QUEUED_CHUNKS, "taken": 4 * 28, "equal": True},
    "broken_off": [True],
    "nan": ["VAE decoder", True, None, True],
    "memory": [3, 2, 1, 1, 0],
}


@pytest.mark.parametrize("script", EXPECTED)
def test_sessions_at_the_same_time_leave_each_other_alone(
    played: list[dict[str, Any]], script: str
) -> None:
    assert played[0][script] == EXPECTED[script]


def test_followers_free_what_is_closed(played: list[dict[str, Any]]) -> None:
    for rank in played[1:]:
        assert rank["alive"] == EXPECTED["memory"]


# The producer ----------------------------------------------------------------------------


class Toy(Source):
    """A source that notes what is done."""

    def __init__(self, name: str, chunks: int, log: list[str], fails: Exception | None = None):
        self.name, self.chunks, self.log, self.fails = name, chunks, log, fails

    def open(self) -> None:
        self.log.append(f"open {self.name}")

    def ready(self) -> bool:
        return self.chunks > 0

    def make(self) -> None:
        self.chunks -= 1
        self.log.append(self.name)
        time.sleep(0.02)
        if self.fails is not None and not self.chunks:
            raise self.fails

    def close(self) -> None:
        self.log.append(f"close {self.name}")

    def free(self) -> None:
        self.log.append(f"free {self.name}")


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_sessions_take_turns_and_opening_goes_first() -> None:
    log: list[str] = []
    producer, a = Producer(), Toy("a", 8, log)
    b, c = Toy("b", 3, log), Toy("c", 0, log)
    producer.open(a)
    wait_for(lambda: "a" in log)
    producer.open(b)
    producer.open(c)
    assert log.count("a") <= 4 and log.count("b") <= 2  # each opened within one chunk
    wait_for(lambda: log.count("a") == 8)
    chunks = [entry for entry in log[log.index("open b") :] if entry in ("a", "b")]
    assert chunks[:6] in (["a", "b"] * 3, ["b", "a"] * 3)
    for source in (c, a, b):
        producer.close(source)
    assert log[-6:] == [f"{what} {name}" for name in "cab" for what in ("close", "free")]
    assert not producers()


def test_an_error_ends_one_session_unless_the_ranks_share_it() -> None:
    log: list[str] = []
    producer = Producer()
    a, b = Toy("a", 2, log, ValueError("mine")), Toy("b", 10, log)
    producer.open(a)
    producer.open(b)
    wait_for(lambda: a.released)
    assert str(a.error) == "mine" and "close a" in log and b.error is None
    shared = Toy("c", 1, log, CommError("a rank is gone"))
    shared.shared = True
    producer.open(shared)
    wait_for(lambda: b.released)
    assert b.error is shared.error is not None and "close b" not in log and "free b" in log
    with pytest.raises(CommError):
        producer.open(Toy("d", 1, log))
    for source in (a, b, shared):
        producer.close(source)
    with pytest.raises(CommError):
        producer.end()
    assert not producers()


def test_what_cannot_be_opened_says_why() -> None:
    class Bad(Toy):
        def open(self) -> None:
            raise UserError("no")

    log: list[str] = []
    producer = Producer()
    with pytest.raises(UserError, match="no"):
        producer.open(Bad("a", 1, log))
    producer.end()
    assert log == ["close a", "free a"] and not producers()


BUSY = """
import os, signal, sys, threading, time
import torch
from livetalk_model.stream.producer import Producer, Source
class Busy(Source):
    def open(self): pass
    def ready(self): return True
    def make(self): time.sleep(100)
    def close(self): pass
    def free(self): pass
producer, busy = Producer(), Busy()
producer.open(busy)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
begin = time.monotonic()
try:
    producer.close(busy)
except KeyboardInterrupt:
    print(f"{time.monotonic() - begin:.1f}", end="")
"""


def test_ctrl_c_is_noticed_at_once_and_a_busy_thread_does_not_hold_up_the_end() -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 130 and not done.stderr, done
    assert float(done.stdout) < 20 and time.monotonic() - begin < 80


class FailingTeam(Team):
    """Two ranks, as far as a session knows; the other one is lost once `lost` is set."""

    lost = False
    size = 2  # type: ignore[assignment]

    def grid(self, size: tuple[int, int]) -> Any:
        return None

    def halo(self, size: tuple[int, int]) -> Any:
        return WHOLE

    def _send(self, text: bytes, data: bytes) -> None:
        if self.lost:
            raise CommError("connection closed by peer")


def test_a_lost_rank_ends_all_sessions() -> None:
    pipeline, team = load(LocalCommunicator()), FailingTeam()
    avatar = pipeline.prepare(Image.new("RGB", SIZE[::-1], "teal"), size=SIZE)
    pipeline.team = team
    a, b, c = (pipeline.session(avatar, options=StreamOptions(steps=1)) for _ in range(3))
    assert sum(map(len, a.push(speech(CHUNK, 0)))) == 28
    waiting: list[BaseException] = []

    def wait() -> None:
        try:
            list(b.push(speech(CHUNK, 0)))
        except CommError as error:
            waiting.append(error)

    team.lost = True
    with pytest.raises(CommError, match="closed by peer"):
        list(a.push(speech(CHUNK, 0)))
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(30)
    assert len(waiting) == 1
    c.close()  # waits for nobody
    for failing in (lambda: pipeline.session(avatar), pipeline.end):
        with pytest.raises(CommError):
            failing()
    assert not producers()
