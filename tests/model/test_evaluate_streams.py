"""Streams that are judged are the product's own, and twins part where they are told to."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from train_clips import make_clips

from livetalk_kernels.errors import UserError
from livetalk_model.config import NEW_FRAMES
from livetalk_model.evaluate.evaluation import CORRECTIONS, Settings, evaluate, round_trip
from livetalk_model.evaluate.models import Model
from livetalk_model.evaluate.recovery import KINDS, recover
from livetalk_model.evaluate.report import (
    collapse,
    differences,
    stream_json,
    stream_numbers,
    summary,
)
from livetalk_model.evaluate.scripts import portrait_of, write_scripts
from livetalk_model.evaluate.streams import make_stream
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.train.data.clips import Clip, Clips, ClipWriter, Index
from livetalk_model.train.data.synthetic import TRUTH
from livetalk_model.train.faces.mouth import HOP

SIZE = (32, 32)


@pytest.fixture(scope="module")
def model() -> Model:
    """Random weights."""
    return Model.load(None, preset="tiny", audio_encoder=None, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Clips:
    """One clip of two seconds."""
    return make_clips(tmp_path_factory.mktemp("evaluate") / "clips")


def test_a_script_joins_the_clips_of_a_voice(clips):
    first, second = write_scripts(clips, streams=2, chunks=3)
    assert first.chunks == 3 and first.distinct == 50 and first.voice == "babble"
    assert len(first.wave) == 3 * NEW_FRAMES * HOP and first.truth.shape == (3 * NEW_FRAMES, 9)
    sound, truth = clips.sound(0).numpy(), clips.truth(0).numpy()
    assert np.array_equal(first.wave, np.concatenate([sound, sound])[: len(first.wave)])
    assert np.array_equal(first.truth[50:], truth[:34])
    assert np.abs(first.opening - first.truth[:, TRUTH.index("opening")]).max() < 1e-6
    assert first.person == second.person and 0 <= first.loudness.min() < first.loudness.max() <= 1
    short = first.until(1)
    assert short.chunks == 1 and len(short.wave) == NEW_FRAMES * HOP
    assert first.until(9).chunks == 3


def test_voices_take_turns(tmp_path):
    writer = ClipWriter(tmp_path / "clips", Index(size=(16, 16), truth=TRUTH))
    for number, (voice, person) in enumerate([("a", 401), ("b", 402), ("a", 403)]):
        clip = Clip(
            frames=np.zeros((28, 16, 16, 3), np.uint8),
            audio=np.full(28 * HOP, number, np.int16),
            truth=np.zeros((28, 9), np.float32),
            facts={"voice": voice, "person": person},
        )
        writer.enter(writer.store(f"{number:06d}.safetensors", clip))
    writer.write_index(complete=True)
    scripts = write_scripts(Clips(tmp_path / "clips"), streams=4, chunks=2)
    assert [(s.voice, s.person.number) for s in scripts] == [
        ("a", 401), ("b", 402), ("a", 403), ("b", 402)
    ]  # fmt: skip
    heard = [(s.wave[:: 28 * HOP] * 32768).tolist() for s in scripts]
    assert heard == [[0, 2], [1, 1], [2, 0], [1, 1]]


def test_clips_of_which_nothing_is_known_are_refused(tmp_path):
    writer = ClipWriter(tmp_path / "real", Index(size=(16, 16), truth=()))
    clip = Clip(
        frames=np.zeros((28, 16, 16, 3), np.uint8),
        audio=np.zeros(28 * HOP, np.int16),
        truth=np.zeros((28, 0), np.float32),
        facts={"source": "x.mp4"},
    )
    writer.enter(writer.store("000000.safetensors", clip))
    writer.write_index(complete=True)
    with pytest.raises(UserError, match="livetalk dataset --synthetic"):
        write_scripts(Clips(tmp_path / "real"), streams=1, chunks=1)


@pytest.mark.parametrize("correction", [0.0, 1.0])
def test_a_stream_is_that_of_a_session(model, clips, correction):
    script = write_scripts(clips, streams=1, chunks=3)[0]
    avatar = model.avatar(portrait_of(script.person, SIZE))
    options = StreamOptions(seed=7, color_correction=correction)
    made = list(make_stream(model.pipeline, avatar, script.wave, options))
    with model.pipeline.session(avatar, options=options) as session:
        taken = np.concatenate([*session.push(script.wave), *session.finish()])
    assert np.array_equal(np.concatenate([chunk.frames for chunk in made]), taken)
    assert made[0].motion.shape == (16, 2, 4, 4)


def test_a_stream_continues_with_the_sound_that_it_has_heard(model, clips):
    """Of the same motion latents and noise, chunk 1 is the same, whatever was made before."""
    script = write_scripts(clips, streams=1, chunks=2)[0]
    avatar, options = model.avatar(portrait_of(script.person, SIZE)), StreamOptions(seed=7)
    first = next(make_stream(model.pipeline, avatar, script.wave, options))
    later = dataclasses.replace(options, seed=8)

    def second(wave: np.ndarray) -> np.ndarray:
        chunks = make_stream(
            model.pipeline, avatar, wave, later, first=1, motion=first.motion.clone()
        )
        return next(chunks).frames

    assert np.array_equal(second(script.wave), second(script.wave))
    silent = script.wave.copy()
    silent[: NEW_FRAMES * HOP] = 0
    assert not np.array_equal(second(script.wave), second(silent))


def test_disturbances_differ_and_are_measured(model, clips):
    script = write_scripts(clips, streams=1, chunks=3)[0]
    avatar, options = model.avatar(portrait_of(script.person, SIZE)), StreamOptions(seed=7)
    first = next(make_stream(model.pipeline, avatar, script.wave, options))
    made: list[None] = []
    found = recover(
        model.pipeline, avatar, script, options, first, first=1, advance=lambda: made.append(None)
    )
    assert [twin.kind for twin in found] == list(KINDS) and len(made) == 2 * (1 + len(KINDS))
    for twin in found:
        assert len(twin.latents) == 3 and len(twin.levels) == 2
        assert min(twin.latents) > 0 and min(twin.levels) > 0 and twin.contraction > 0
    assert len({twin.latents[0] for twin in found}) == len(KINDS)


def test_disturbed_frames_are_what_they_are_called():
    rng = torch.Generator().manual_seed(0)
    frames, other = torch.rand(1, 3, 5, 16, 16, generator=rng) - 0.5, torch.zeros(1, 3, 1, 16, 16)
    colour, blur, noise, face = (disturb(frames, other) for disturb in KINDS.values())
    assert torch.allclose(colour - frames, torch.tensor([0.15, 0, -0.15]).view(1, 3, 1, 1, 1))
    assert blur.std() < 0.5 * frames.std() and (blur.mean() - frames.mean()).abs() < 0.02
    assert float((noise - frames).std()) == pytest.approx(0.15, abs=0.01)
    assert face.shape == frames.shape and not face.any()


def test_an_evaluation_counts_its_chunks_and_two_of_them_are_compared(model, clips):
    scripts, settings = write_scripts(clips, streams=2, chunks=2), Settings(twins=1, steps=1)
    made: list[None] = []
    ours = list(evaluate(model, scripts, SIZE, settings, lambda: made.append(None)))
    assert len(made) == settings.work(scripts) == 2 * 2 * (2 + 5)
    assert [(s.correction, s.seed) for s in ours] == [
        ("on", 9999), ("off", 9999), ("on", 10000), ("off", 10000)
    ]  # fmt: skip
    for stream in ours:
        assert all(len(values) == 2 for values in stream.chunks.values())
        assert len(stream.recoveries) == len(KINDS)
    same, found = differences(ours, ours), summary(ours)
    for correction in CORRECTIONS:
        for group, names in same[correction].items():
            nothing = 1 if group == "contraction" else 0
            for name, entry in names.items():
                assert entry["mean"] in (None, nothing), (group, name)
        numbers = [stream_numbers(s)["mean"]["away"] for s in ours if s.correction == correction]
        entry = found[correction]["mean"]["away"]
        assert entry["mean"] == pytest.approx(np.mean(numbers), rel=1e-4)
        assert entry["low"] <= entry["mean"] <= entry["high"] and entry["count"] == 2
        seeds = [*ours, *(dataclasses.replace(stream, run=1) for stream in ours)]
        pooled = summary(seeds)[correction]["mean"]["away"]
        assert (pooled["count"], pooled["low"], pooled["high"]) == (2, *2 * [entry["mean"]])
    assert collapse(ours[0]) == 1  # random weights draw nobody
    assert stream_json(ours[0])["chunks"]["seam"][0] is None


def test_the_vae_alone_is_measured(model, clips):
    found = round_trip(model.pipeline, clips)
    assert found["clips"] == 1 and 3 < found["picture_db"] < 20 and found["sharpness"] > 0


def test_a_model_is_named_by_its_folder(tmp_path):
    with pytest.raises(UserError, match="none"):
        Model.load(
            Path(tmp_path / "none"), preset=None, audio_encoder=None, device="cpu", dtype="auto"
        )
