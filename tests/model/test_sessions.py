"""Any number of sessions at the same time, on one rank and several: each is what it is alone."""

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import CommError, NumericsError, UserError
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.avatar import Avatar
from livetalk_model.config import NEW_FRAMES
from livetalk_model.loading import ModelSource, load_pipeline
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.chunk import ChunkGenerator, StreamOptions
from livetalk_model.stream.production import QUEUED_CHUNKS
from livetalk_model.stream.session import Session
from livetalk_model.stream.team import Team

RATE = 16000
SIZE = (64, 48)
CHUNK = 17920  # samples
LIMIT = 200.0
WORLDS = (1, 2, 3)


def speech(samples: int, seed: int) -> np.ndarray:
    t = np.arange(samples) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.01, samples)
    return (np.sin(t * (700 + 100 * seed)) * np.sin(t * 9) ** 2 * 0.3 + noise).astype(np.float32)


def options(seed: int) -> StreamOptions:
    return StreamOptions(steps=1, seed=seed)


def load(comm: Communicator) -> Pipeline:
    source = ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
        backend=None, reuse=True,
    )  # fmt: skip
    return source.load_pipeline(source.load_preparer(), Team(comm))


def face(pipeline: Pipeline, seed: int = 0) -> Avatar:
    y, x = np.mgrid[:60, :50]
    picture = np.stack([4 * x, (4 + seed) * y, 128 + 0 * x], axis=-1).astype(np.uint8)
    return pipeline.prepare(Image.fromarray(picture), size=SIZE)


def chunk(session: Session, index: int, seed: int) -> list[np.ndarray]:
    """Frames of a whole chunk."""
    return list(session.push(speech(CHUNK, 10 * seed + index)))


def lead(pipeline: Pipeline, script: Callable[[Pipeline], dict[str, Any]]) -> dict[str, Any]:
    """Run a script on rank 0 while the others follow."""
    try:
        return script(pipeline)
    finally:
        pipeline.end()


def led(comm: Communicator, script: Callable[[Pipeline], dict[str, Any]]) -> dict[str, Any]:
    pipeline = load(comm)
    if comm.rank:
        pipeline.follow()
        return {}
    return lead(pipeline, script)


def on_ranks(world: int, script: Callable[[Pipeline], dict[str, Any]]) -> dict[str, Any]:
    """What a script gives on rank 0 of so many."""
    result: dict[str, Any] = run_ranks(led, world, script, timeout=LIMIT)[0]
    return result


# Interleaved ------------------------------------------------------------------------------


def whole(pipeline: Pipeline, avatar: Avatar, seed: int, samples: int) -> np.ndarray:
    """All frames of a session that is alone."""
    with pipeline.session(avatar, options=options(seed)) as session:
        return np.concatenate([*session.push(speech(samples, seed)), *session.finish()])


def interleave(
    pipeline: Pipeline, avatars: list[Avatar], lengths: list[int], seed: int
) -> list[np.ndarray]:
    """All frames of sessions that are opened, pushed to and taken from at random."""
    random = np.random.default_rng(seed)
    frames: list[list[np.ndarray]] = [[] for _ in lengths]

    def life(index: int) -> Iterator[None]:
        """One session; between its steps others take theirs."""
        sound = speech(lengths[index], index)
        with pipeline.session(avatars[index], options=options(index)) as session:
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

    lives = [life(index) for index in range(len(lengths))]
    while lives:
        turn = lives[int(random.integers(len(lives)))]
        if next(turn, "over") == "over":
            lives.remove(turn)
    return [np.concatenate(taken) for taken in frames]


def alone_and_together(pipeline: Pipeline) -> dict[str, Any]:
    """How many values differ, of two and three sessions, and the frames of each."""
    lengths = [2 * CHUNK + 5000, CHUNK + 100, 3 * CHUNK]
    avatars = [face(pipeline, seed) for seed in range(3)]
    alone = [whole(pipeline, *given) for given in zip(avatars, range(3), lengths, strict=True)]
    found: dict[str, Any] = {"frames": [len(frames) for frames in alone], "differ": []}
    for count, seed in ((2, 0), (3, 1), (3, 2)):
        together = interleave(pipeline, avatars[:count], lengths[:count], seed)
        for a, b in zip(alone, together, strict=False):
            found["differ"].append(int((a != b).sum()) if a.shape == b.shape else -1)
    assert not np.array_equal(alone[0][:20], alone[1][:20])
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_sessions_at_the_same_time_give_the_frames_of_each_alone(world: int) -> None:
    found = on_ranks(world, alone_and_together)
    assert found == {"frames": [64, 29, 84], "differ": [0] * 8}


def by_threads(pipeline: Pipeline) -> dict[str, Any]:
    """A thread for each session."""
    lengths = [2 * CHUNK + 5000, CHUNK + 100, 3 * CHUNK]
    avatar = face(pipeline)
    alone = [whole(pipeline, avatar, seed, length) for seed, length in enumerate(lengths)]
    together: dict[int, np.ndarray] = {}

    def run(seed: int) -> None:
        together[seed] = whole(pipeline, avatar, seed, lengths[seed])

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"equal": [np.array_equal(alone[seed], together[seed]) for seed in range(3)]}


@pytest.mark.parametrize("world", [1, 2])
def test_every_session_may_have_a_thread_of_its_own(world: int) -> None:
    assert on_ranks(world, by_threads)["equal"] == [True] * 3


# What one session does to the others ------------------------------------------------------


def opened_within_a_chunk(pipeline: Pipeline) -> dict[str, Any]:
    """B is opened while A, whose audio is there, is in the middle of a chunk."""
    avatar = face(pipeline)
    expected = [whole(pipeline, avatar, seed, 4 * CHUNK) for seed in range(2)]
    with pipeline.session(avatar, options=options(0)) as a:
        made = a.push(speech(4 * CHUNK, 0))
        taken = [next(made)]
        with pipeline.session(avatar, options=options(1)) as b:
            begun = a.production._started
            other = [*b.push(speech(4 * CHUNK, 1)), *b.finish()]
        taken += [*made, *a.finish()]
    equal = [np.array_equal(np.concatenate(x), y) for x, y in zip((taken, other), expected, strict=True)]
    return {"begun": begun, "equal": equal}


@pytest.mark.parametrize("world", WORLDS)
def test_a_session_opens_within_one_chunk_of_another(world: int) -> None:
    found = on_ranks(world, opened_within_a_chunk)
    assert found["begun"] <= 2 and found["equal"] == [True, True]


def paused(pipeline: Pipeline) -> dict[str, Any]:
    """A takes one piece and pauses; B goes on; A has lost nothing."""
    avatar = face(pipeline)
    expected = [whole(pipeline, avatar, seed, 4 * CHUNK) for seed in range(2)]
    with (
        pipeline.session(avatar, options=options(0)) as a,
        pipeline.session(avatar, options=options(1)) as b,
    ):
        made = a.push(speech(4 * CHUNK, 0))
        taken = [next(made)]
        other = [*b.push(speech(4 * CHUNK, 1)), *b.finish()]
        begun = a.production._started
        taken += [*made, *a.finish()]
    equal = [np.array_equal(np.concatenate(x), y) for x, y in zip((taken, other), expected, strict=True)]
    return {"begun": begun, "equal": equal}


@pytest.mark.parametrize("world", WORLDS)
def test_who_pauses_is_parked_with_two_chunks_and_holds_up_nobody(world: int) -> None:
    assert on_ranks(world, paused) == {"begun": QUEUED_CHUNKS, "equal": [True, True]}


def broken_off(pipeline: Pipeline, how: str) -> dict[str, Any]:
    """A ends in the middle of a chunk, in some way; B goes on."""
    avatar = face(pipeline)
    expected = whole(pipeline, avatar, 1, 3 * CHUNK)
    b = pipeline.session(avatar, options=options(1))
    taken = list(b.push(speech(3 * CHUNK, 1)[:CHUNK]))

    def leave() -> None:
        if how == "forgotten":
            forgotten = pipeline.session(avatar, options=options(0))
            next(forgotten.push(speech(2 * CHUNK, 0)))
            return
        with pipeline.session(avatar, options=options(0)) as a:
            for _ in a.push(speech(2 * CHUNK, 0)):
                if how == "closed":
                    a.close()
                else:
                    raise KeyboardInterrupt if how == "interrupted" else ValueError(how)

    try:
        leave()
    except (ValueError, KeyboardInterrupt):
        pass
    gc.collect()
    with b:
        taken += b.push(speech(3 * CHUNK, 1)[CHUNK:])
        taken += b.finish()
    return {"equal": np.array_equal(np.concatenate(taken), expected)}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["closed", "failed", "interrupted", "forgotten"])
def test_who_breaks_off_ends_one_session_alone(world: int, how: str) -> None:
    assert on_ranks(world, partial(broken_off, how=how))["equal"]


def poison(pipeline: Pipeline) -> list[str]:
    """A's sound makes a NaN; what A and B say then."""
    avatar = face(pipeline)
    expected = whole(pipeline, avatar, 1, 3 * CHUNK)
    said = []
    a = pipeline.session(avatar, options=options(0))
    with pipeline.session(avatar, options=options(1)) as b:
        taken = list(b.push(speech(3 * CHUNK, 1)[:CHUNK]))
        a.production._chunks.motion[:] = math.nan  # type: ignore[union-attr]
        try:
            list(a.push(speech(CHUNK, 0)))
        except NumericsError as error:
            said.append(error.stage)
        taken += [*b.push(speech(3 * CHUNK, 1)[CHUNK:]), *b.finish()]
    try:
        a.push(speech(1, 0))
    except RuntimeError:
        said.append("over")
    if np.array_equal(np.concatenate(taken), expected):
        said.append("equal")
    return said


def poisoned(comm: Communicator, victim: int) -> list[str]:
    """As `poison`, with the NaN in one rank's part of session 1."""
    pipeline = load(comm)
    if not comm.rank:
        return lead(pipeline, partial(_poisoned, victim=victim))["said"]
    if comm.rank == victim:
        _poison_second(pipeline)
    pipeline.follow()
    return []


def _poison_second(pipeline: Pipeline) -> None:
    """Put a NaN into the second session that this process opens, from its first chunk on."""
    made: list[weakref.ref[ChunkGenerator]] = []
    chunk, start = ChunkGenerator.chunk, ChunkGenerator.__init__

    def init(self: ChunkGenerator, *given: Any, **named: Any) -> None:
        start(self, *given, **named)
        made.append(weakref.ref(self))

    def broken(self: ChunkGenerator, windows: torch.Tensor, **named: Any) -> Any:
        if len(made) > 1 and made[1]() is self:
            self.work._audio = None  # type: ignore[attr-defined]
            self.motion = self.motion * math.nan
        return chunk(self, windows, **named)

    ChunkGenerator.__init__, ChunkGenerator.chunk = init, broken  # type: ignore[method-assign]


def _poisoned(pipeline: Pipeline, victim: int) -> dict[str, Any]:
    if victim == 0:
        _poison_second(pipeline)
    avatar = face(pipeline)
    expected = whole(pipeline, avatar, 1, 3 * CHUNK)
    said = []
    with pipeline.session(avatar, options=options(0)) as a:  # the second one
        with pipeline.session(avatar, options=options(1)) as b:
            taken = list(b.push(speech(3 * CHUNK, 1)[:CHUNK]))
            try:
                list(a.push(speech(CHUNK, 0)))
            except NumericsError as error:
                said.append(error.stage)
            taken += [*b.push(speech(3 * CHUNK, 1)[CHUNK:]), *b.finish()]
        try:
            a.push(speech(1, 0))
        except RuntimeError:
            said.append("over")
    if np.array_equal(np.concatenate(taken), expected):
        said.append("equal")
    return {"said": said}


@pytest.mark.parametrize(("world", "victim"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_nan_on_any_rank_ends_its_session_alone(world: int, victim: int) -> None:
    assert run_ranks(poisoned, world, victim, timeout=LIMIT)[0] == ["DiT step 1", "over", "equal"]


# What remains -----------------------------------------------------------------------------


def living() -> int:
    """Generators in this process's memory."""
    gc.collect()
    return sum(isinstance(thing, ChunkGenerator) for thing in gc.get_objects())


def remains(comm: Communicator) -> list[int]:
    """Generators in memory, at the end of every chunk on followers; at some points on rank 0."""
    pipeline = load(comm)
    alive: list[int] = []
    if comm.rank:
        pipeline.follow(ended=lambda count: alive.append(living()))
        return [*alive, living()]

    def script(pipeline: Pipeline) -> dict[str, Any]:
        avatar = face(pipeline)
        a, b, c = (pipeline.session(avatar, options=options(seed)) for seed in range(3))
        chunk(a, 0, 0)  # three are open
        alive.append(living())
        c.close()  # has never made a frame
        chunk(b, 0, 1)
        alive.append(living())
        a.close()
        chunk(b, 1, 1)
        alive.append(living())
        del a, b, c  # b was never closed
        gc.collect()
        for _ in range(100 if comm.size == 1 else 5):
            pipeline.session(avatar, options=options(0)).close()
        last = pipeline.session(avatar, options=options(0))
        chunk(last, 0, 0)
        alive.append(living())
        try:
            pipeline.end()  # with a session open
            last.push(speech(CHUNK, 0))
            list(last.finish())
        except RuntimeError as error:
            assert "ended" in str(error)
            alive.append(living())
        return {}

    script(pipeline)
    assert not [thread for thread in threading.enumerate() if thread.name == "producer"]
    return alive


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_of_a_closed_session_remains_on_any_rank(world: int) -> None:
    assert run_ranks(remains, world, timeout=LIMIT) == [[3, 2, 1, 1, 0]] * world


def lost(comm: Communicator) -> list[str]:
    """Rank 1 goes away within a chunk; all sessions end, and none can be opened."""
    pipeline = load(comm)
    if comm.rank:
        def leave(count: int) -> None:
            if count == 2:
                raise EOFError

        try:
            pipeline.follow(ended=leave)
        except EOFError:
            comm._mailboxes = None  # type: ignore[attr-defined]
            torch.distributed.destroy_process_group()
            torch.distributed.destroy_process_group = lambda: None  # type: ignore[assignment]
            torch.distributed.barrier = lambda: None  # type: ignore[assignment]
        return []
    avatar = face(pipeline)
    said = []
    a, b = (pipeline.session(avatar, options=options(seed)) for seed in range(2))
    chunk(a, 0, 0)
    chunk(b, 0, 1)
    for session in (a, b):
        try:
            chunk(session, 1, 0)
        except CommError:
            said.append("lost")
        session.close()
    try:
        pipeline.session(avatar)
    except CommError:
        said.append("lost")
    torch.distributed.barrier = lambda: None  # type: ignore[assignment]
    torch.distributed.destroy_process_group = lambda: None  # type: ignore[assignment]
    return said


def test_a_lost_rank_ends_all_sessions() -> None:
    assert run_ranks(lost, 2, timeout=LIMIT)[0] == ["lost"] * 3


# On one rank ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(preset="tiny", device="cpu")


def test_what_cannot_be_opened_leaves_the_others_alone(pipeline: Pipeline) -> None:
    avatar = face(pipeline)
    with pipeline.session(avatar, options=options(0)) as session:
        chunk(session, 0, 0)
        wrong = Avatar(**{**vars(avatar), "context": torch.zeros(3, 7)})
        with pytest.raises(RuntimeError):
            pipeline.session(wrong)
        assert sum(map(len, chunk(session, 1, 0))) == NEW_FRAMES
    assert not [thread for thread in threading.enumerate() if thread.name == "producer"]


def test_a_chunk_begins_before_anybody_takes_its_frames(pipeline: Pipeline) -> None:
    with pipeline.session(face(pipeline), options=options(0)) as session:
        made = session.push(speech(CHUNK, 0))
        end = time.monotonic() + LIMIT
        while session.production._coming() and time.monotonic() < end:
            time.sleep(0.01)
        assert session.stats.frames == session.stats.count == 0
        assert sum(map(len, made)) == session.stats.frames == NEW_FRAMES
        assert session.stats.count == 1


def test_ctrl_c_reaches_who_waits_for_frames_at_once() -> None:
    """A program that is interrupted within a long chunk ends soon, with Ctrl-C's exit code."""


def test_bad_audio_ends_nothing(pipeline: Pipeline) -> None:
    with pipeline.session(face(pipeline), options=options(0)) as session:
        with pytest.raises(UserError):
            session.push(np.array([math.nan]))
        assert sum(map(len, chunk(session, 0, 0))) == NEW_FRAMES
