"""The audio encoder's training: it learns mouths, and is exported as the product reads it."""

import dataclasses

import pytest
import torch
from train_clips import make_clips

from livetalk_kernels.errors import UserError
from livetalk_model.encoders.audio import AudioEncoder
from livetalk_model.train.audio.task import AudioData, audio_training
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.loop.loop import train
from livetalk_model.train.settings import Run


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Clips:
    return make_clips(tmp_path_factory.mktemp("audio") / "clips")


def test_a_few_steps_lower_the_loss_and_the_product_hears_the_same(clips, tmp_path):
    run, losses = Run(steps=20, batch=1, learning_rate=3e-3), []
    training = audio_training(run, clips)
    assert train(run, training.task, training.state, training.data, tmp_path,
                 report=lambda p: losses.append(p.numbers["audio loss"]))  # fmt: skip
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), losses
    (file,) = training.finish(tmp_path)
    assert file == tmp_path / "model.safetensors"
    wave = clips.sound(0)
    encoder, reader = AudioEncoder.from_folder(tmp_path, device="cpu"), training.state.networks
    mine = AudioEncoder(reader["audio"].encoder).embed(wave)
    found = encoder.embed(wave)
    assert found.shape == (len(wave) // 640, encoder.layers, encoder.width)
    assert torch.allclose(found, mine, rtol=1e-4, atol=1e-5)
    picture = training.sample()
    assert picture.dtype == torch.uint8 and picture.float().std() > 1


def test_clips_of_which_nothing_is_known_are_refused(clips):
    index = dataclasses.replace(clips.index, truth=())
    unknown = Clips(clips.folder)
    unknown.index = index
    with pytest.raises(UserError, match="nothing is known of its mouths"):
        AudioData(unknown, Run(steps=1))
