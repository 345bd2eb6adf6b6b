"""What a model of our own training says of its use, and every way in which that can be damaged."""

import json

import pytest

from livetalk_kernels.errors import UserError
from livetalk_model.loading import ModelSource
from livetalk_model.own import OwnModel

OWN = OwnModel(size=(64, 80), prompt_zeros=1, image_zeros=True)


def write(folder, entry, **config):
    path = folder / "config.json"
    shape = {"text_dim": 64, "image_dim": 32, "image_len": 5}
    path.write_text(json.dumps({**shape, **config, **entry}))
    return path


def test_it_comes_back_and_published_models_have_none(tmp_path, golden_checkpoint):
    assert OwnModel.read(write(tmp_path, OWN.entry())) == OWN
    assert OwnModel.read(write(tmp_path, {})) is None
    source = ModelSource.find(
        preset=None, checkpoint=golden_checkpoint("tiny_a"), audio_encoder=None, device="cpu",
        dtype="fp32", backend=None, reuse=True,
    )  # fmt: skip
    assert source.own is None and source.audio_encoder is None
    with pytest.raises(UserError, match="needs --audio-encoder DIR"):
        source.require_audio_encoder()
    assert source.load_preparer().size == (768, 448)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (7, "livetalk is 7, not an object"),
        ({}, r"livetalk.size is missing"),
        ({"size": [64]}, "livetalk.size has 1 entries, not 2"),
        ({"size": [64, 70]}, "size is .64, 70., not multiples of 16"),
        ({"size": [64, 0]}, r"livetalk.size.1. is 0, not from 16 to 4096"),
        ({"size": [1 << 20, 64]}, r"livetalk.size.0. is 1048576"),
        ({"size": [64, 64], "version": 2}, "livetalk.version is 2, not one of 1"),
        ({"size": [64, 64], "prompt_zeros": -1}, "livetalk.prompt_zeros is -1"),
        ({"size": [64, 64], "prompt_zeros": 513}, "prompt_zeros is 513, text_len 512 the most"),
        ({"size": [64, 64], "image_zeros": 1}, "livetalk.image_zeros is"),
    ],
)
def test_damaged_values_are_named(entry, words, tmp_path):
    path = write(tmp_path, {"livetalk": entry})
    with pytest.raises(UserError, match=words) as error:
        OwnModel.read(path)
    assert str(path) in str(error.value) and "--resume" in str(error.value)


def test_constants_are_bounded(tmp_path):
    path = write(tmp_path, OWN.entry(), image_len=1 << 16, image_dim=1 << 16)
    with pytest.raises(UserError, match="image_zeros: means 4294967296 zeros"):
        OwnModel.read(path)
