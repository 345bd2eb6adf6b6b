"""The transformer's trainings on what frozen networks say of clips."""

from pathlib import Path

import pytest
import torch
from train_clips import make_sources

from livetalk_kernels.errors import UserError
from livetalk_model.train.chunks.trainings import distill_training, teacher_training
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.loop.loop import train
from livetalk_model.train.loop.training import About, Training
from livetalk_model.train.settings import Run
from livetalk_model.weights.checkpoint import CheckpointFolder


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
                 tell=lambda p: losses.append(p.numbers[f"{turn} loss"]))  # fmt: skip
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
    before = [value.clone() for value in training.state.networks["student"].parameters()]
    losses = go(run, training, tmp_path / "distill", "critic")
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    after = training.state.networks["student"].parameters()
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_what_is_missing_is_named(made):
    clips, about = made
    run = Run(steps=1, batch=1)
    with pytest.raises(UserError, match="--vae: missing; train it with 'livetalk train vae'"):
        teacher_training(run, clips, About(kind="teacher", data=about.data))
    with pytest.raises(UserError, match="--teacher: missing"):
        distill_training(run, clips, about)
