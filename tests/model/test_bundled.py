"""What comes with the package."""

from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from livetalk_kernels.errors import UserError
from livetalk_model import bundled
from livetalk_model.bundled import SPEECH, bundled_portraits, bundled_weights
from livetalk_model.cli.samples import PORTRAIT, note_foreign, portrait
from livetalk_model.config import AudioEncoderConfig, get_preset
from livetalk_model.loading import ModelSource
from livetalk_model.train.faces.cast import PERSONS
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.painter import Painter, Pose
from livetalk_model.train.product.packing import MOST_BYTES, SUMS
from livetalk_model.weights.manifest import verify_manifest

NUMBERS = {"ada": 27, "ben": 1, "carl": 34, "dora": 404}


def test_portraits_are_those_persons_and_one_was_never_seen():
    found = bundled_portraits()
    assert found.keys() == NUMBERS.keys() and SPEECH.is_file()
    for name, path in found.items():
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, Painter(Identity.of(NUMBERS[name]), (192, 192)).draw(Pose()))
    unseen = [name for name, number in NUMBERS.items() if number in PERSONS["test"]]
    assert unseen == [PORTRAIT] == ["dora"]


def test_a_file_comes_before_a_bundled_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portrait("ada") == bundled_portraits()["ada"]
    (tmp_path / "ada").write_bytes(b"mine")
    assert str(portrait("ada")) == "ada" and str(portrait("nobody")) == "nobody"


def test_missing_weights_are_named_with_the_cure(tmp_path, monkeypatch):
    assert bundled_weights("tiny") is None
    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"--preset demo: its weights are not .*make train-demo"):
        bundled_weights("demo")


def test_the_demo_is_what_was_packed():
    """Small enough for the repository, unchanged, and of the preset's shape."""
    folder = SPEECH.parents[1] / "demo"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= MOST_BYTES
    states = verify_manifest(folder / SUMS, {"checkpoint": folder}, lambda name, count: None)
    assert set(states.values()) == {"ok"} and len(states) == len(files) - 1
    source = ModelSource.find(
        preset=None, checkpoint=None, audio_encoder=None, device="cpu", dtype="fp32", backend=None,
        reuse=True,
    )  # fmt: skip
    demo, checkpoint = get_preset("demo"), source.folder
    assert source.preset == "demo" and checkpoint.path == folder and source.own.size == demo.size
    assert checkpoint.dit_config(demo.audio.layers, demo.audio.width) == demo.dit
    assert checkpoint.vae_config() == demo.vae
    assert AudioEncoderConfig.from_json(source.audio_encoder / "config.json") == demo.audio


@pytest.mark.parametrize(
    ("named", "preset", "checkpoint", "said"),
    [
        ("ada", None, None, False),
        ("mine.png", None, None, True),
        ("mine.png", "demo", None, True),
        ("mine.png", "tiny", None, False),
        ("mine.png", None, "runs/student", False),
    ],
)
def test_a_portrait_from_elsewhere_gets_a_note_on_what_the_demo_can_do(
    named, preset, checkpoint, said, capsys
):
    given = Namespace(portrait=portrait(named), preset=preset, checkpoint=checkpoint)
    note_foreign(given)
    assert ("drawings like its own" in capsys.readouterr().err) == said
