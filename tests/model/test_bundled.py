"""What comes with the package."""

import numpy as np
import pytest
from PIL import Image

from livetalk_kernels.errors import UserError
from livetalk_model import bundled
from livetalk_model.bundled import SPEECH, bundled_portraits, bundled_weights
from livetalk_model.cli.samples import PORTRAIT, portrait
from livetalk_model.train.cast import PERSONS
from livetalk_model.train.identity import Identity
from livetalk_model.train.packing import MOST_BYTES, SUMS
from livetalk_model.train.painter import Painter, Pose
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
    """Small enough for the repository, and unchanged."""
    folder = SPEECH.parents[1] / "demo"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    if files:
        states = verify_manifest(folder / SUMS, {"checkpoint": folder}, lambda name, count: None)
        assert set(states.values()) == {"ok"} and len(states) == len(files) - 1
