"""The streaming loop: the published frames, chunk after chunk, and the session around it."""

import dataclasses
import math
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import NumericsError, UserError
from livetalk_kernels.ops import bind_ops
from livetalk_kernels.runtime.host_copies import HostRing
from livetalk_kernels.runtime.lanes import ThreadLane
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_kernels.testing.trace import overlap_seconds, trace_problems
from livetalk_model import load_pipeline
from livetalk_model.avatar import Avatar
from livetalk_model.config import NEW_FRAMES
from livetalk_model.dit import DiT
from livetalk_model.encoders.audio import AudioStream, audio_windows
from livetalk_model.pipeline import Pipeline
from livetalk_model.preparation import Preparer
from livetalk_model.sampler import timesteps
from livetalk_model.stream.chunk import ChunkGenerator, StreamOptions
from livetalk_model.stream.graphs import StreamCalls
from livetalk_model.stream.session import Session
from livetalk_model.stream.stats import StreamStats
from livetalk_model.vae import VAE
from livetalk_model.weights.checkpoint import CheckpointFolder
from livetalk_model.weights.fill import load_module, open_weights

RATE = 16000


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB."""
    error = np.mean((actual.astype(np.float64) - expected.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


# Against the published code --------------------------------------------------------------

# name -> reuse, fuse_bias
SCHEDULES = {"default": (True, False), "fused": (True, True), "published": (False, False)}


@pytest.fixture(scope="module")
def golden_models(golden_checkpoint):
    """The golden DiT and VAE by schedule, loaded once each."""
    folder = CheckpointFolder(golden_checkpoint("tiny_a"))
    ops = bind_ops(device="cpu", dtype=torch.float32)
    models = {}
    for schedule, (reuse, fuse_bias) in SCHEDULES.items():
        with torch.device("meta"):
            dit = DiT(folder.dit_config(12, 768), ops, reuse=reuse)
            vae = VAE(folder.vae_config(), ops, reuse=reuse, fuse_bias=fuse_bias)
        with open_weights(folder.dit) as files:
            load_module(dit, files, dtype=torch.float32, device="cpu", key_map=dit.key_map())
        with open_weights(folder.vae) as files:
            load_module(vae, files, dtype=torch.float32, device="cpu")
        vae.prepare()
        models[schedule] = dit, vae
    return models


@pytest.fixture(scope="module")
def golden_avatar(golden):
    """The conditioning of the golden runs."""
    conditioning, prepared = golden("e2e_conditioning"), golden("e2e_prepare")
    portrait = ((prepared["cond_image_tensor"][0, :, 0] / 2 + 0.5) * 255).round()
    return Avatar(
        context=conditioning["context"],
        clip_fea=conditioning["clip_fea"],
        condition=prepared["y"][0, 4:],
        portrait=portrait.to(torch.uint8),
        model="golden",
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("run", "options"),
    [
        ("e2e_cc0", StreamOptions(color_correction=0.0)),
        ("e2e_cc1", StreamOptions(color_correction=1.0)),
        ("e2e_cc1_steps2", StreamOptions(color_correction=1.0, steps=2)),
    ],
)
def test_published_frames(run, options, schedule, golden, golden_models, golden_avatar):
    dit, vae = golden_models[schedule]
    audio = golden("audio")
    generator = ChunkGenerator(dit, vae, golden_avatar, options, reuse=vae.reuse)
    assert torch.equal(generator.motion, golden("e2e_prepare")["latent_motion_frames_0"])
    for index in range(3):
        expected = golden(f"{run}_chunk{index}")
        embeddings = audio[f"stream768_frames165_199_{index}"]
        windows = audio_windows(embeddings, 2, len(embeddings))[None]
        frames = np.concatenate(list(generator.chunk(windows)))
        assert frames.shape == (28, 96, 64, 3)
        exactness = psnr(frames, expected["frames_u8"].numpy())
        print(f"{run}, {schedule}, chunk {index}: {exactness:.1f} dB")  # shown by pytest -rP
        assert exactness >= 80, f"chunk {index}"
        drift = (generator.motion - expected["encode_out"]).norm() / expected["encode_out"].norm()
        assert drift < 1e-4


def test_published_preparation(golden, golden_models, reference_dir):
    dit, vae = golden_models["default"]
    preparer = Preparer(
        config=dit.config, vae=vae, ops=dit.ops, size=(96, 64), checkpoint=None, load_seconds=0.0
    )
    given, expected = golden("e2e_conditioning"), golden("e2e_prepare")
    avatar = preparer.prepare(
        reference_dir / "io" / "portrait_149x203.png",
        prompt_embeds=given["context"],
        image_embeds=given["clip_fea"],
    )
    pixels = (avatar.portrait.float() / 255 - 0.5) * 2
    assert torch.equal(pixels, expected["cond_image_tensor"][0, :, 0])
    latents = expected["y"][0, 4:]
    assert (avatar.condition - latents).norm() / latents.norm() < 1e-5


def test_published_steps(golden, golden_models, golden_avatar):
    dit, vae = golden_models["default"]
    expected = golden("e2e_cc0_chunk0")
    generator = ChunkGenerator(dit, vae, golden_avatar, StreamOptions())
    embeddings = golden("audio")["stream768_frames165_199_0"]
    inputs, outputs, run = [], [], dit.forward

    def record(latent, **given):
        inputs.append(latent)
        outputs.append(run(latent, **given))
        return outputs[-1]

    dit.forward = record
    try:
        final = generator.latents(audio_windows(embeddings, 2, len(embeddings))[None])
    finally:
        del dit.forward
    for index in range(4):
        for name, actual in (("latent_in", inputs), ("model_out", outputs)):
            target = expected[f"step{index}.{name}"]
            assert (actual[index][0] - target).norm() / target.norm() < 1e-5
    assert (final - expected["final_latent"]).norm() / expected["final_latent"].norm() < 1e-5


def test_schedule(golden):
    assert torch.equal(timesteps(4, 5.0), golden("e2e_prepare")["timesteps"])


def test_schedules_of_facts(facts):
    for steps, table in facts["timesteps"].items():
        for shift in (1.0, 3.0, 5.0):
            expected = torch.tensor(table[f"shift_{shift}"])
            assert torch.allclose(timesteps(int(steps), shift), expected, rtol=0, atol=1e-4)


# The session -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    """The tiny preset with random weights."""
    return load_pipeline(preset="tiny", device="cpu")


@pytest.fixture(scope="module")
def avatar(pipeline) -> Avatar:
    """An avatar of a picture made here, at 32x48."""
    y, x = np.mgrid[:60, :50]
    picture = np.stack([4 * x, 4 * y, 128 + 0 * x], axis=-1).astype(np.uint8)
    return pipeline.prepare(Image.fromarray(picture), prompt="Hello.", size=(32, 48))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Something with a spectrum and a rhythm."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    return (np.sin(t * 900) * np.sin(t * 9) ** 2 * 0.3 + random.normal(0, 0.01, t.shape)).astype(
        np.float32
    )


FAST = StreamOptions(steps=1)


def collect(pipeline, avatar, samples, blocks, options=FAST) -> np.ndarray:
    """All frames of a session that gets its audio in blocks of the given lengths, repeated."""
    out = [np.zeros((0, *avatar.size, 3), np.uint8)]
    start = 0
    with pipeline.session(avatar, options=options) as session:
        index = 0
        while start < len(samples):
            step = blocks[index % len(blocks)]
            out += session.push(samples[start : start + step])
            start, index = start + step, index + 1
        out += session.finish()
    return np.concatenate(out)


@pytest.mark.parametrize("seconds", [0.001, 0.04, 0.5, 1.12, 1.121, 2.5])
def test_video_is_as_long_as_the_audio(pipeline, avatar, seconds):
    frames = collect(pipeline, avatar, speech(seconds), [RATE])
    expected = math.ceil(round(seconds * RATE) * 25 / RATE - 1e-6)
    assert frames.shape == (expected, 32, 48, 3)
    assert frames.dtype == np.uint8


def test_blocks_do_not_matter(pipeline, avatar):
    samples = speech(2.6)
    whole = collect(pipeline, avatar, samples, [len(samples)])
    assert np.array_equal(whole, collect(pipeline, avatar, samples, [1000, 0, 333, 17920]))


@pytest.mark.parametrize("schedule", [{"reuse": False}, {"fuse_bias": True}])
def test_other_schedules_give_the_same_frames(schedule, pipeline, avatar):
    published = load_pipeline(preset="tiny", device="cpu", **schedule)
    samples = speech(2.6)
    options = StreamOptions()
    once = collect(pipeline, avatar, samples, [9000], options)
    again = collect(published, avatar, samples, [9000], options)
    assert psnr(once, again) >= 60


# What runs concurrently ------------------------------------------------------------------


def overlapped(pipeline, avatar, options=FAST, timeline=None) -> Session:
    """A session that encodes audio and warms the decoder in a thread."""
    parts = (pipeline.dit, pipeline.vae, pipeline.audio_encoder)
    return Session(*parts, avatar, options, lane=ThreadLane(), timeline=timeline)


def ranges(timeline: Timeline, name: str) -> dict[str, int]:
    """Lane -> how many ranges of that name it has."""
    trace = timeline.trace({})
    assert not trace_problems(trace)
    lanes = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"]
             if event["name"] == "thread_name"}  # fmt: skip
    return Counter(lanes[event["tid"]] for event in trace["traceEvents"] if event["name"] == name)


@pytest.mark.parametrize("blocks", [[10**6], [1000, 0, 333, 17920]])
def test_what_runs_concurrently_gives_the_same_frames(pipeline, avatar, blocks):
    samples, timeline = speech(3.0), Timeline(torch.device("cpu"), capacity=1000)
    expected = collect(pipeline, avatar, samples, [len(samples)])
    before, out, start, index = threading.active_count(), [], 0, 0
    with overlapped(pipeline, avatar, timeline=timeline) as session:
        while start < len(samples):
            step = blocks[index % len(blocks)]
            out += session.push(samples[start : start + step])
            start, index = start + step, index + 1
        out += session.finish()
        assert session.stats.stage_means()["warm decoder (beside)"] > 0
    assert np.array_equal(np.concatenate(out), expected)
    assert threading.active_count() == before
    assert ranges(timeline, "prepare") == {"main": 1, "beside": 1}
    assert ranges(timeline, "warm decoder") == {"beside": 2}
    # The first chunk's audio is waited for anyway; the other two are there in time, or are not.
    whole = len(blocks) == 1
    assert ranges(timeline, "audio encoder").get("beside", 0) == (1 if whole else 0)


def test_all_audio_is_encoded_concurrently_where_it_is_pushed_ahead(pipeline, avatar):
    samples, timeline = speech(4.0), Timeline(torch.device("cpu"), capacity=1000)
    expected, out = collect(pipeline, avatar, samples, [RATE]), []
    with overlapped(pipeline, avatar, timeline=timeline) as session:
        for start in range(0, len(samples), 4000):
            made = session.push(samples[start : start + 4000])
            while not session.wants_audio and (frames := next(made, None)) is not None:
                out.append(frames)
        out += session.finish()
    assert np.array_equal(np.concatenate(out), expected)
    assert ranges(timeline, "audio encoder") == {"main": 1, "beside": 3}
    trace = timeline.trace({})
    assert overlap_seconds(trace, "audio encoder", "decode") > 0


def test_leaving_midway_leaves_no_thread(pipeline, avatar):
    before = threading.active_count()
    with overlapped(pipeline, avatar) as session:
        next(session.push(speech(2.3)))
        session.close()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="stop"), overlapped(pipeline, avatar) as session:
        for _ in session.push(speech(2.3)):
            raise ValueError("stop")
    assert threading.active_count() == before


def test_what_fails_concurrently_is_raised_where_it_is_needed(pipeline, avatar, monkeypatch):
    calls, push = [], AudioStream.push

    def fail(self, samples):
        calls.append(threading.current_thread())
        if len(calls) == 2:
            raise UserError("audio: broken")
        return push(self, samples)

    monkeypatch.setattr(AudioStream, "push", fail)
    got = 0
    with pytest.raises(UserError, match="broken"), overlapped(pipeline, avatar) as session:
        for frames in session.push(speech(3.0)):
            got += len(frames)
    assert got == NEW_FRAMES and calls[0] is not calls[1]
    assert session._closed


def test_frames_that_leave_one_group_late_are_the_same(pipeline, avatar):
    """As on a GPU, but with plain memory."""
    windows = torch.randn(2, 1, 33, 5, pipeline.audio_encoder.layers, pipeline.audio_encoder.width)
    runs = []
    for ahead in (0, 1):
        generator = ChunkGenerator(pipeline.dit, pipeline.vae, avatar, FAST)
        generator._ring = HostRing(torch.device("cpu"), ahead=ahead)
        frames = [list(generator.chunk(windows[0])), list(generator.chunk(windows[1], frames=10))]
        assert [len(group) for group in frames[1]] == [4, 4, 2]
        runs.append(np.concatenate([group for chunk in frames for group in chunk]))
    assert np.array_equal(*runs)


def test_frames_one_group_late_are_still_checked_first(pipeline, avatar):
    windows = torch.randn(1, 33, 5, pipeline.audio_encoder.layers, pipeline.audio_encoder.width)
    count = []

    def poisoned(*given, **named):
        count.append(1)
        return pipeline.vae.decode_step(*given, **named) * (math.nan if len(count) == 3 else 1)

    calls = StreamCalls(step=pipeline.dit, decode_step=poisoned, encode=pipeline.vae.encode)
    generator = ChunkGenerator(pipeline.dit, pipeline.vae, avatar, FAST, calls=calls)
    generator._ring = HostRing(torch.device("cpu"), ahead=1)
    got = 0
    with pytest.raises(NumericsError, match="VAE decoder"):
        for frames in generator.chunk(windows):
            got += len(frames)
    assert got == 8


def test_seed_and_audio_matter(pipeline, avatar):
    base = collect(pipeline, avatar, speech(1.12), [RATE])
    other_seed = dataclasses.replace(FAST, seed=1)
    assert np.array_equal(base, collect(pipeline, avatar, speech(1.12), [RATE]))
    assert psnr(base, collect(pipeline, avatar, speech(1.12), [RATE], other_seed)) < 40
    assert not np.array_equal(base, collect(pipeline, avatar, speech(1.12, seed=4) * 0.2, [RATE]))


@pytest.mark.parametrize("fps", [24.0, 29.97, 30.0])
def test_other_frame_rates(pipeline, avatar, fps):
    options = dataclasses.replace(FAST, fps=fps)
    frames = collect(pipeline, avatar, speech(2.0), [RATE], options)
    assert len(frames) == math.ceil(2.0 * fps - 1e-6)


def test_frames_left_over_come_with_the_next_call(pipeline, avatar):
    samples = speech(2.24)
    whole = collect(pipeline, avatar, samples, [len(samples)])
    out = []
    with pipeline.session(avatar, options=FAST) as session:
        first = session.push(samples)
        out.append(next(first))
        first.close()
        out += session.push(samples[:0])
        out += session.finish()
    assert np.array_equal(np.concatenate(out), whole)


def test_frames_leave_as_they_are_decoded(pipeline, avatar):
    with pipeline.session(avatar, options=FAST) as session:
        sizes = [len(frames) for frames in session.push(speech(1.12))]
        assert sizes == [4] * 7
        assert session.stats.first_frame < session.stats.elapsed
        assert set(session.stats.startup) >= {"prepare", "audio encoder", "denoise", "decode"}


def test_int16_audio_and_bad_audio(pipeline, avatar):
    samples = (speech(1.12) * 32767).astype(np.int16)
    with pipeline.session(avatar, options=FAST) as session:
        assert sum(len(frames) for frames in session.push(samples)) == NEW_FRAMES
        for bad in (np.zeros((2, 5)), np.array([0.0, np.nan]), np.arange(4)):
            with pytest.raises(UserError):
                session.push(bad)
        list(session.finish())
        with pytest.raises(RuntimeError):
            session.push(samples)


@pytest.mark.parametrize(
    ("part", "stage"),
    [("dit", "DiT step 1"), ("vae", "VAE decoder"), ("audio_encoder", "audio encoder")],
)
def test_nan_is_caught_in_its_chunk_and_names_the_stage(avatar, part, stage):
    broken = load_pipeline(preset="tiny", device="cpu")
    weights = {
        "dit": lambda: broken.dit.head.head.bias,
        "vae": lambda: broken.vae.get_parameter("decoder.head.2.bias"),
        "audio_encoder": lambda: next(broken.audio_encoder._network.encoder.parameters()),
    }[part]()
    with torch.no_grad():
        weights.view(-1)[0] = math.nan
    if part == "vae":
        broken.vae.prepare()
    with (
        pytest.raises(NumericsError, match=stage) as caught,
        broken.session(avatar, options=FAST) as session,
    ):
        for _ in session.push(speech(1.12)):
            raise AssertionError("no frame of a broken chunk may leave")
    assert caught.value.stage == stage


def test_inf_in_the_decoder_is_not_hidden_by_the_clamp(avatar):
    broken = load_pipeline(preset="tiny", device="cpu")
    with torch.no_grad():
        broken.vae.get_parameter("decoder.head.2.bias")[0] = math.inf
    with (
        pytest.raises(NumericsError, match="VAE decoder"),
        broken.session(avatar, options=FAST) as session,
    ):
        list(session.push(speech(1.12)))


def test_statistics_leave_out_the_cut_chunk(pipeline, avatar):
    with pipeline.session(avatar, options=FAST) as session:
        list(session.push(speech(1.5)))
        assert len(session.stats.chunk_seconds) == 1
        list(session.finish())
        stats = session.stats
        assert (stats.count, len(stats.chunk_seconds), stats.frames) == (2, 1, 38)
        assert stats.percentile(50) == stats.percentile(95) == stats.chunk_seconds[0]
        assert stats.computing > stats.chunk_seconds[0]
        assert 0 < stats.first_frame < stats.elapsed
    assert session.production._chunks is None  # a closed session holds no tensors


def test_underrun_counts_the_time_a_player_waits(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("livetalk_model.stream.stats.time.perf_counter", lambda: now[0])
    stats = StreamStats(fps=25.0, _request=0.0)
    for at, frames in ((2.0, 5), (2.1, 5), (2.9, 5)):
        now[0] = at
        stats.delivered(frames)
    # 10 frames from 2.0 s last until 2.4 s; the next came at 2.9 s.
    assert stats.underrun == pytest.approx(0.5)
    assert stats.first_frame == 2.0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA"])
def test_portraits_of_any_mode(pipeline, mode):
    avatar = pipeline.prepare(Image.new("RGB", (40, 40), "teal").convert(mode), size=(32, 32))
    assert avatar.portrait.shape == (3, 32, 32)


def test_options_are_checked():
    bad_values = {
        "steps": (0, 1.5), "shift": (0.0, 1e-9), "color_correction": (1.5,), "fps": (0.0, 4.0),
        "seed": (-1, 1.5),
    }  # fmt: skip
    for bad in ({name: value} for name, values in bad_values.items() for value in values):
        with pytest.raises(UserError, match="--"):
            StreamOptions(**bad)


def test_avatar_of_another_model_is_refused(pipeline, avatar):
    stranger = dataclasses.replace(avatar, model="000000000000")
    with pytest.raises(UserError, match="made by"):
        pipeline.session(stranger)


def test_avatar_file_round_trip(pipeline, avatar, tmp_path):
    path = tmp_path / "me.avatar"
    avatar.save(path)
    loaded = Avatar.load(path)
    assert loaded.prompt == "Hello." and loaded.note == "random weights"
    assert [p.name for p in tmp_path.iterdir()] == ["me.avatar"]
    samples = speech(1.12)
    assert np.array_equal(
        collect(pipeline, loaded, samples, [RATE]), collect(pipeline, avatar, samples, [RATE])
    )
    (tmp_path / "cut.avatar").write_bytes(path.read_bytes()[:-100])
    for name in ("missing.avatar", "cut.avatar"):
        with pytest.raises(UserError, match=name):
            Avatar.load(tmp_path / name)
