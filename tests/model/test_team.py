"""One stream on several ranks is the stream of one rank."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.mesh import factor_pairs
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.avatar import Avatar
from livetalk_model.loading import ModelSource, load_pipeline
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.chunk import ChunkGenerator, StreamOptions
from livetalk_model.stream.team import Split, Team

RATE = 16000
SIZE = (96, 80)  # latents of 12 x 10: rows and columns that most worlds do not divide
SECONDS = 3.3  # three chunks, the last one cut
HEADS = 4
KINDS = {"all_to_all", "ring", "gather", "halo", "statistics", "collect", "guard"}
LIMIT = 280.0


def speech(seconds: float) -> np.ndarray:
    random = np.random.default_rng(0)
    t = np.arange(round(seconds * RATE)) / RATE
    noise = random.normal(0, 0.01, t.shape)
    return (np.sin(t * 900) * np.sin(t * 9) ** 2 * 0.3 + noise).astype(np.float32)


def picture() -> Image.Image:
    y, x = np.mgrid[:60, :50]
    return Image.fromarray(np.stack([4 * x, 4 * y, 128 + 0 * x], axis=-1).astype(np.uint8))


def source() -> ModelSource:
    return ModelSource.find(
        preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
        backend=None, reuse=True,
    )  # fmt: skip


def frames_of(pipeline: Pipeline, avatar: Avatar, **options: float) -> np.ndarray:
    """All frames of the speech, pushed in pieces."""
    taken = []
    with pipeline.session(avatar, options=StreamOptions(**options)) as session:
        for block in np.array_split(speech(SECONDS), 7):
            taken += session.push(block)
        taken += session.finish()
    return np.concatenate(taken)


def splits(world: int) -> list[tuple[int, int]]:
    return [(ulysses, ring) for ulysses, ring in factor_pairs(world) if ulysses <= HEADS]


def stream_every_split(comm: Communicator) -> list[dict]:
    """The same stream with every split; frames of rank 0, and what the others hold."""
    results = []
    loaded = source()
    preparer = loaded.load_preparer()
    for ulysses, ring in splits(comm.size):
        team = Team(comm, split=Split(ulysses=ulysses, ring=ring))
        pipeline = loaded.load_pipeline(preparer, team)
        if not team.leads:
            pipeline.follow()
            results.append({})
            continue
        avatar = pipeline.prepare(picture(), size=SIZE)
        frames = frames_of(pipeline, avatar)
        pipeline.end()
        results.append({"frames": torch.from_numpy(frames)})
    return results


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline = load_pipeline(preset="tiny", device="cpu", dtype="fp32")
    frames = frames_of(pipeline, pipeline.prepare(picture(), size=SIZE))
    torch.set_num_threads(threads)
    return frames


@pytest.mark.parametrize("world", [2, 3, 4, 5, 6, 8])
def test_every_split_gives_the_frames_of_one_rank(world: int, alone: np.ndarray) -> None:
    results = run_ranks(stream_every_split, world, timeout=LIMIT)
    assert alone.shape == (math.ceil(SECONDS * 25), *SIZE, 3)
    for (ulysses, ring), result in zip(splits(world), results[0], strict=True):
        frames = result["frames"].numpy()
        assert frames.shape == alone.shape
        for start in range(0, len(alone), 28):
            chunk = slice(start, start + 28)
            assert psnr(frames[chunk], alone[chunk]) >= 60, (ulysses, ring, start)


def generate_directly(comm: Communicator) -> list[int]:
    """Frames that each rank's generator yields of a chunk, and the bytes of pixels it sends."""
    pipeline = source().load_pipeline(source().load_preparer(), Team(comm))
    avatar = pipeline.prepare(picture(), size=SIZE)  # the same on all ranks
    chunks = ChunkGenerator(pipeline.dit, pipeline.vae, avatar, StreamOptions(), team=pipeline.team)
    config = pipeline.dit.config
    windows = torch.zeros(1, 33, config.audio_window, config.audio_layers, config.audio_dim)
    comm.traffic.clear()
    yielded = list(chunks.chunk(windows))
    assert set(comm.traffic.bytes) <= KINDS  # nothing else is sent, by anybody
    return [sum(map(len, yielded)), comm.traffic.bytes["collect"]]


def test_rank_0_alone_has_frames() -> None:
    pixels = 28 * SIZE[0] * SIZE[1] * 3
    assert run_ranks(generate_directly, 2, timeout=LIMIT) == [[28, 0], [0, pixels // 2]]


def refused(comm: Communicator) -> list[str]:
    """What cannot be is said on every rank, before anything is shared."""
    messages = []
    for split, reuse in (
        (Split(ulysses=3), True),
        (Split(), False),
        (Split(ring=2, fp8_exchange=True), True),
        (Split(xfuser=True), True),
    ):
        loaded = ModelSource.find(
            preset="tiny", checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32",
            backend=None, reuse=reuse,
        )  # fmt: skip
        try:
            loaded.load_pipeline(loaded.load_preparer(), Team(comm, split=split))
        except UserError as error:
            messages.append(str(error))
    return messages


def test_what_cannot_be_shared_is_refused() -> None:
    for messages in run_ranks(refused, 2, timeout=LIMIT):
        assert "--ulysses 3" in messages[0] and "2 x 1, 1 x 2" in messages[0]
        assert "--no-reuse" in messages[1]
        assert "--fp8-exchange" in messages[2]
        assert "--xfuser: runs on cuda" in messages[3]
