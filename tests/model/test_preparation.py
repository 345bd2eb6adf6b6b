"""Preparing an avatar: NaN and Inf are caught, and the stage that made them is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import NumericsError
from livetalk_model import load_preparer, preparation
from livetalk_model.cli.main import main
from livetalk_model.encoders import conditions
from livetalk_model.preparation import Preparer

SIZE = (32, 48)


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture."""
    y, x = np.mgrid[:80, :70]
    return Image.fromarray(np.stack([3 * x, 3 * y, 90 + 0 * x], -1).astype(np.uint8))


def poison(stage: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this stage's output holds the value once."""
    kind, name = {
        "VAE encoder": (preparation.VAE, "encode"),
        "text encoder": (conditions.RandomTextEncoder, "encode"),
        "image encoder": (conditions.RandomImageEncoder, "encode"),
    }[stage]
    sound = getattr(kind, name)

    def poisoned(self: object, given: object) -> torch.Tensor:
        output: torch.Tensor = sound(self, given).clone()
        output[(-1,) * output.ndim] = value
        return output

    monkeypatch.setattr(kind, name, poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", ["VAE encoder", "text encoder", "image encoder"])
def test_stage_with_nan_is_named(stage, value, picture, monkeypatch):
    preparer = load_preparer(preset="tiny", device="cpu")
    preparer.prepare(picture, size=SIZE)
    poison(stage, value, monkeypatch)
    with pytest.raises(NumericsError) as caught:
        preparer.prepare(picture, size=SIZE)
    assert caught.value.stage == stage
    assert str(caught.value).startswith(f"{stage}: NaN or Inf")


def test_nan_in_the_weights_of_the_vae(picture):
    preparer: Preparer = load_preparer(preset="tiny", device="cpu")
    with torch.no_grad():
        preparer.vae.get_parameter("conv1.bias")[0] = float("nan")
    with pytest.raises(NumericsError, match="VAE encoder"):
        preparer.prepare(picture, size=SIZE)


@pytest.mark.parametrize("stage", ["VAE encoder", "text encoder", "image encoder"])
def test_command_fails_in_one_line(stage, picture, monkeypatch, tmp_path: Path, capsys):
    picture.save(tmp_path / "me.png")
    poison(stage, float("nan"), monkeypatch)
    command = ["prepare", "--preset", "tiny", "--device", "cpu", "--size", "32x48"]
    command += ["--portrait", str(tmp_path / "me.png"), "--output", str(tmp_path / "new/me.avatar")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"error: {stage}: NaN or Inf")
    assert printed.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["me.png"]
