"""The transformer's trainings on what frozen networks say of clips."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from train_clips import make_sources, publish
from train_runs import whole
from train_samples import training_ops

from livetalk_kernels.errors import UserError
from livetalk_model import load_preparer
from livetalk_model.avatar import before_grey
from livetalk_model.bundled import bundled_weights
from livetalk_model.config import CHUNK_FRAMES, NEW_FRAMES
from livetalk_model.encoders.audio import AudioEncoder, AudioStream
from livetalk_model.encoders.image import ImageEncoder
from livetalk_model.encoders.text import TextEncoder
from livetalk_model.preparation import DEFAULT_PROMPT
from livetalk_model.train.chunks.feature_files import FeatureFiles, features_key
from livetalk_model.train.chunks.features import Features
from livetalk_model.train.chunks.tasks import DistillTask, through_frames
from livetalk_model.train.chunks.trainings import distill_training, teacher_training
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.data.clips import Clips, ClipWriter, Index
from livetalk_model.train.demo import SETTINGS, default_run
from livetalk_model.train.faces.mouth import FPS, HOP
from livetalk_model.train.loop.loop import At, train
from livetalk_model.train.loop.training import About, Training
from livetalk_model.train.settings import Run
from livetalk_model.train.vae.whole import encode_whole
from livetalk_model.vae import VAE
from livetalk_model.weights.checkpoint import CheckpointFolder, read_vae_config
from livetalk_model.weights.fill import load_module, open_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Clips, About]:
    """A clip of two chunks, and what a transformer is trained with, of random weights."""
    folder = tmp_path_factory.mktemp("chunks")
    made = make_sources(folder)
    sources = {"vae": str(made["vae"]), "audio_encoder": str(made["audio-encoder"])}
    return Clips(made["data"]), About(kind="teacher", data=str(made["data"]), sources=sources)


def go(run: Run, training: Training, folder: Path, turn: str) -> list[float]:
    """Train; the losses of a turn."""
    losses = []
    assert train(run, training.task, training.state, training.data, folder,
                 report=lambda p: losses.append(p.numbers[f"{turn} loss"]))  # fmt: skip
    return losses


def test_both_stages_learn_one_clip(made, tmp_path):
    clips, about = made
    run = Run(steps=16, batch=2, learning_rate=2e-3, average=0.5, teaching=Teaching(anchored=0.6))
    training = teacher_training(run, clips, about)
    losses = go(run, training, tmp_path, "teacher")
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4]), losses
    folder = tmp_path / "teacher"
    files = training.finish(folder)
    assert sorted(files) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert CheckpointFolder(folder).own.size == (32, 32)
    assert CheckpointFolder(folder).dit_config(2, 96).dim == 192
    assert training.sample().shape == (64, 8 * 32, 3)
    begun = teacher_training(
        run,
        clips,
        About(kind="teacher", data=about.data, sources={**about.sources, "start": folder}),
    )
    its = begun.state.networks["teacher"].state_dict()
    average = training.state.averages["teacher"].weights
    assert all(torch.equal(its[name], value) for name, value in average.items())

    method = Distillation(chunks=2, generator_every=1, guidance=Guidance(text=None))
    run = Run(steps=8, batch=1, learning_rate=1e-4, critic_rate=2e-3, distillation=method)
    about = About(kind="distill", data=about.data, sources={**about.sources, "teacher": folder})
    training = distill_training(run, clips, about)
    for name in ("student", "critic"):  # both begin as the teacher
        its = training.state.networks[name].state_dict()
        assert all(torch.equal(its[key], value) for key, value in average.items()), name
    assert isinstance(training.task, DistillTask)
    batch, vae = training.data.batch(whole(run)), load_vae(CheckpointFolder(about.sources["vae"]))
    handed = training.task.hand_over(batch["portrait"], batch)
    assert torch.allclose(handed, through_frames(vae)(batch["portrait"], batch), atol=1e-4)
    assert not torch.allclose(handed, batch["portrait"][:, :, -2:], atol=0.1)
    before = [value.clone() for value in training.state.networks["student"].parameters()]
    losses = go(run, training, tmp_path / "distill", "critic")
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    after = training.state.networks["student"].parameters()
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def load_vae(folder: CheckpointFolder) -> VAE:
    with open_weights(folder.vae) as files:
        with torch.device("meta"):
            vae = VAE(read_vae_config(files), training_ops())
        load_module(vae, files, dtype=torch.float32, device="cpu")
    vae.prepare()
    return vae


def test_a_chunk_is_heard_and_seen_where_it_is_in_its_clip(made):
    """Each of the clip's two chunks comes up, with its own frames and the sound up to its end.

    Its portrait is a frame that it does not have: the clip's last, or for the second its first.
    """
    clips, about = made
    run = Run(steps=1, batch=16)
    data = teacher_training(run, clips, about).data
    encoder = AudioEncoder.from_folder(about.sources["audio_encoder"], device="cpu")
    stream = AudioStream(encoder, fps=FPS, frames=CHUNK_FRAMES)
    sound, vae = clips.sound(0), load_vae(CheckpointFolder(about.sources["vae"]))
    chunks, heard = [], 0
    for start in (0, NEW_FRAMES):
        frames = clips.frames(0)[start : start + CHUNK_FRAMES].permute(3, 0, 1, 2)[None]
        end = (start + CHUNK_FRAMES) * HOP
        chunks.append((encode_whole(vae, frames / 127.5 - 1)[0], stream.push(sound[heard:end])))
        heard = end
    pictures = [clips.frames(0)[n].permute(2, 0, 1)[:, None] / 127.5 - 1 for n in (0, -1)]
    portraits = [encode_whole(vae, before_grey(picture[None]))[0] for picture in pictures]
    batch, found = data.batch(whole(run)), set()
    for n in range(run.batch):
        chunk = which(batch["latents"][n], [latents for latents, _ in chunks])
        assert torch.allclose(batch["windows"][n], chunks[chunk][1], atol=1e-4)
        portrait = which(batch["portrait"][n], portraits)
        assert which(batch["picture"][n], pictures) == portrait
        found.add((chunk, portrait))
    assert found == {(0, 1), (1, 0), (1, 1)}
    assert not torch.allclose(chunks[0][1], chunks[1][1], atol=1e-2)
    part = data.batch(At(step=0, micro=0, samples=[3, 9]))  # as a rank of several asks for
    assert all(torch.equal(value, batch[name][[3, 9]]) for name, value in part.items())


def which(value: Tensor, known: list[Tensor]) -> int:
    """Its place among those known."""
    return [torch.allclose(value, its, atol=1e-3) for its in known].index(True)


def test_features_are_computed_once_for_the_same_networks_and_clip(made, tmp_path):
    """Not after a clip was replaced, nor by another VAE."""
    clips = Clips(shutil.copytree(made[0].folder, tmp_path / "clips"))
    computed = []

    def compute(clip: int) -> Features:
        computed.append(clip)
        return Features(**{name: torch.full((2,), float(len(computed)))
                           for name in Features.__annotations__})  # fmt: skip

    def read(key: str) -> float:
        return float(FeatureFiles(clips, key, compute).read(0).latents[0])

    vaes = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for vae in vaes:
        vae.write_bytes(vae.name.encode())
    one, other = (features_key([vae], torch.float32, (1, 16)) for vae in vaes)
    assert [read(one), read(one), read(other), read(one)] == [1, 1, 2, 1]
    assert features_key(vaes[:1], torch.bfloat16, (1, 16)) not in (one, other)
    file = clips.folder / clips.index.clips[0].file
    os.utime(file, ns=(0, 0))
    assert [read(one), read(one), read(other)] == [3, 3, 4] and computed == [0] * 4
    kept = clips.folder / "features" / one / file.name
    kept.write_bytes(kept.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"{file.name}.*remove it; the training computes it again"):
        read(one)


@pytest.fixture
def spoken(made, tmp_path) -> Clips:
    """The clip twice: the second time with a prompt of its own."""
    clips, _ = made
    (entry,) = clips.index.clips
    folder = tmp_path / "clips"
    writer = ClipWriter(folder, Index(size=clips.index.size, truth=clips.index.truth))
    for name, facts in (("a", {}), ("b", {"prompt": "a camera talking"})):
        file = f"{name}.safetensors"
        (folder / file).write_bytes((clips.folder / entry.file).read_bytes())
        writer.enter(replace(entry, file=file, facts=facts))
    writer.write_index(complete=True)
    return Clips(folder)


def test_prompts_and_portraits_are_encoded_as_the_product_encodes_them(
    made, spoken, tmp_path, monkeypatch
):
    """Once each, by the encoders in the transformer's folder; a run's folder has them too."""
    encoded = []
    for kind in (TextEncoder, ImageEncoder):
        encode = kind.encode
        monkeypatch.setattr(
            kind, "encode", lambda self, x, encode=encode: (encoded.append(x), encode(self, x))[1]
        )
    published = publish(tmp_path / "published")
    about = replace(made[1], sources={**made[1].sources, "start": str(published)})
    run = Run(steps=2, batch=8, learning_rate=1e-3)
    training = teacher_training(run, spoken, about)
    batches = [training.data.batch(whole(run, step)) for step in range(2)]
    assert len(encoded) == 6, "two prompts, and two portraits of each clip"
    go(run, training, tmp_path / "run", "teacher")
    finished = tmp_path / "teacher"
    files = training.finish(finished)
    assert sorted(files) == sorted(path for path in finished.rglob("*") if path.is_file())

    preparer = load_preparer(checkpoint=finished, device="cpu")  # needs nothing else
    pictures = [Image.fromarray(spoken.frames(0)[n].numpy()) for n in (0, -1)]
    images = []
    for prompt, picture in zip((DEFAULT_PROMPT, "a camera talking"), pictures, strict=True):
        avatar = preparer.prepare(picture, prompt=prompt)
        images.append(avatar.clip_fea[0])
        length = len(avatar.context)
        alike = [
            torch.allclose(row[:length], avatar.context) and not row[length:].any()
            for batch in batches
            for row in batch["text"]
        ]
        assert any(alike) and not all(alike), prompt
    assert {which(image, images) for batch in batches for image in batch["image"]} == {0, 1}

    method = Distillation(chunks=1, guidance=Guidance())
    sources = {**made[1].sources, "teacher": str(finished)}
    about = About(kind="distill", data=about.data, sources=sources)
    run = Run(steps=1, batch=8, distillation=method)
    batch = distill_training(run, spoken, about).data.batch(whole(run))
    assert torch.equal(batch["text"], batches[0]["text"])
    next(finished.glob("models_clip*")).unlink()
    with pytest.raises(UserError, match=r"models_clip.*: missing; .*download them into its folder"):
        distill_training(run, spoken, about)


def test_defaults_are_the_papers_for_what_begins_as_a_large_model(tmp_path):
    """One that reads prompts; the VAE is small in any case."""
    large = publish(tmp_path / "published")
    for kind, steps in (("teacher", 1000), ("distill", 200)):
        assert default_run(kind, large) == Run(steps=steps)
        assert (
            default_run(kind, bundled_weights("demo")) == default_run(kind) == Run(**SETTINGS[kind])
        )
    assert default_run("vae", large) == Run(**SETTINGS["vae"])


def test_what_is_missing_is_named(made):
    clips, about = made
    run = Run(steps=1, batch=1)
    with pytest.raises(UserError, match="--vae: missing; train it with 'livetalk train vae'"):
        teacher_training(run, clips, About(kind="teacher", data=about.data))
    with pytest.raises(UserError, match="--teacher: missing"):
        distill_training(run, clips, about)
