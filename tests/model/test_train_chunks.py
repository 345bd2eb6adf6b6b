"""The transformer's trainings on what frozen networks say of clips."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from train_clips import make_sources, publish
from train_samples import training_ops

from livetalk_kernels.errors import UserError
from livetalk_model import load_preparer
from livetalk_model.config import CHUNK_FRAMES, NEW_FRAMES
from livetalk_model.encoders.audio import AudioEncoder, AudioStream
from livetalk_model.encoders.image import ImageEncoder
from livetalk_model.encoders.text import TextEncoder
from livetalk_model.preparation import DEFAULT_PROMPT
from livetalk_model.train.chunks.tasks import DistillTask, through_frames
from livetalk_model.train.chunks.trainings import distill_training, teacher_training
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.data.clips import Clips, ClipWriter, Index
from livetalk_model.train.faces.mouth import FPS, HOP
from livetalk_model.train.loop.loop import train
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
    batch, vae = training.data.batch(0, 0), load_vae(CheckpointFolder(about.sources["vae"]))
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
    """Each of the clip's two chunks comes up, with its own frames and the sound up to its end."""
    clips, about = made
    data = teacher_training(Run(steps=1, batch=16), clips, about).data
    encoder = AudioEncoder.from_folder(about.sources["audio_encoder"], device="cpu")
    stream = AudioStream(encoder, fps=FPS, frames=CHUNK_FRAMES)
    sound, vae = clips.sound(0), load_vae(CheckpointFolder(about.sources["vae"]))
    chunks, heard = [], 0
    for start in (0, NEW_FRAMES):
        frames = clips.frames(0)[start : start + CHUNK_FRAMES].permute(3, 0, 1, 2)[None]
        end = (start + CHUNK_FRAMES) * HOP
        chunks.append((encode_whole(vae, frames / 127.5 - 1)[0], stream.push(sound[heard:end])))
        heard = end
    batch, found = data.batch(0, 0), set()
    for latents, windows in zip(batch["latents"], batch["windows"], strict=True):
        match = [torch.allclose(latents, its, atol=1e-3) for its, _ in chunks]
        found.add(match.index(True))
        assert torch.allclose(windows, chunks[match.index(True)][1], atol=1e-4)
    assert found == {0, 1}
    assert not torch.allclose(chunks[0][1], chunks[1][1], atol=1e-2)


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
    batches = [training.data.batch(step, 0) for step in range(2)]
    assert len(encoded) == 4, "two prompts, two portraits"
    go(run, training, tmp_path / "run", "teacher")
    finished = tmp_path / "teacher"
    files = training.finish(finished)
    assert sorted(files) == sorted(path for path in finished.rglob("*") if path.is_file())

    preparer = load_preparer(checkpoint=finished, device="cpu")  # needs nothing else
    picture = Image.fromarray(spoken.frames(0)[-1].numpy())
    for prompt, place in ((DEFAULT_PROMPT, 0), ("a camera talking", 1)):
        avatar = preparer.prepare(picture, prompt=prompt)
        length = len(avatar.context)
        alike = [
            torch.allclose(row[:length], avatar.context) and not row[length:].any()
            for batch in batches
            for row in batch["text"]
        ]
        assert any(alike) and not all(alike), place
        for batch in batches:
            assert torch.allclose(batch["image"], avatar.clip_fea.expand(8, -1, -1), atol=1e-5)

    method = Distillation(chunks=1, guidance=Guidance())
    sources = {**made[1].sources, "teacher": str(finished)}
    about = About(kind="distill", data=about.data, sources=sources)
    distilled = distill_training(Run(steps=1, batch=8, distillation=method), spoken, about)
    assert torch.equal(distilled.data.batch(0, 0)["text"], batches[0]["text"])
    next(finished.glob("models_clip*")).unlink()
    with pytest.raises(UserError, match=r"models_clip.*: missing; .*download them into its folder"):
        distill_training(run, spoken, about)


def test_what_is_missing_is_named(made):
    clips, about = made
    run = Run(steps=1, batch=1)
    with pytest.raises(UserError, match="--vae: missing; train it with 'livetalk train vae'"):
        teacher_training(run, clips, About(kind="teacher", data=about.data))
    with pytest.raises(UserError, match="--teacher: missing"):
        distill_training(run, clips, about)
