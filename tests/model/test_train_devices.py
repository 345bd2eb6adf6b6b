"""Trainings on a GPU that is not there: every tensor is where the others are."""

from pathlib import Path

import pytest
import torch
from train_clips import make_sources

from livetalk_kernels.testing.fake_cuda import FakeCuda
from livetalk_model import linear
from livetalk_model.train.config import Distillation, Guidance
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.loop.place import Place
from livetalk_model.train.loop.saving import last_checkpoint
from livetalk_model.train.loop.training import About, carry_out
from livetalk_model.train.product.export import DIT_FILE
from livetalk_model.train.settings import Run
from livetalk_model.train.trainings import make_training

GPU = torch.device("cuda", 0)
METHOD = Distillation(chunks=2, generator_every=1, guidance=Guidance(text=None))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sources(tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("kind", ["vae", "audio", "teacher", "distill"])
def test_a_training_stays_on_its_device(kind, made, tmp_path, monkeypatch):
    # What is recomputed within a backward pass does not see the GPU that is not there.
    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)
    sources = {"vae": str(made["vae"]), "audio_encoder": str(made["audio-encoder"])}
    run = Run(steps=1, batch=1, learning_rate=1e-4, average=0.5, distillation=METHOD)
    clips = Clips(made["data"])
    with FakeCuda() as gpus:
        place = Place(device=GPU, recompute=True)
        if kind == "distill":
            about = About(kind="teacher", data=str(made["data"]), sources=sources)
            carry_out(run, make_training(about, run, clips, place), tmp_path / "teacher",
                      sample_every=0, place=place)  # fmt: skip
            sources |= {"teacher": str(tmp_path / "teacher")}
        about = About(kind=kind, data=str(made["data"]), sources=sources)
        training = make_training(about, run, clips, place)
        for network in training.state.networks.values():
            assert {parameter.device for parameter in network.parameters()} == {GPU}
        files = carry_out(run, training, tmp_path / "run", sample_every=1, place=place)
        assert gpus.calls
        again = make_training(about, run, clips, place)  # and from the checkpoint
        carry_out(run, again, tmp_path / "run", sample_every=0, place=place)
    assert all(path.is_file() for path in files) and last_checkpoint(tmp_path / "run") is not None
    assert (tmp_path / "run/samples/step-00000001.png").is_file()
    if kind in ("teacher", "distill"):
        assert tmp_path / "run" / DIT_FILE in files
