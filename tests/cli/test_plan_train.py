"""``livetalk plan --train``."""

import json

import pytest
from cli_tools import refused

from livetalk_model.cli.main import main

TRAIN = ("plan", "--train", "--gpu", "h800")


def test_a_table(capsys):
    assert main([*TRAIN]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    words = " ".join(printed.split())
    for word in (
        "Forecast, not measured", "8 x H800", "18.9 B", "720x416", "stage 1, 1000 x 32", "70.8 GB",
        "42.5 GB", "85.7 GB !", "4.5 h", "does not fit 80.0 GB", "A800", "9 h, these formulas: 9.1",
    ):  # fmt: skip
        assert word in words, word


def test_for_machines(capsys):
    assert main([*TRAIN, "--gpus", "64", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["settings"]["gpus"] == 64 and len(value["timed"]) == 2
    first, _, second, small = value["stages"]
    assert (first["stage"], second["stage"]) == ("stage 1", "stage 2")
    assert second["states"] / 1e9 == pytest.approx(8.9, abs=0.06)
    assert small["optimizer"] == "adamw8bit" and second["fits"]
    assert first["seconds"] / 3600 == pytest.approx(0.56, abs=0.02)


def test_another_model_and_size(capsys):
    assert main([*TRAIN, "--preset", "small", "--size", "480x832", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["timed"] == [] and value["settings"]["size"] == [480, 832]
    assert value["stages"][0]["memory"] < 20e9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--plot", "x.png"], "--plot"), (["--ulysses", "2"], "--ulysses"),
        (["--fit", "x"], "--fit"), (["--steps", "2"], "--steps"),
        (["--size", "30x40"], "multiples of 16"),
        (["--preset", "huge"], "huge"), (["--validate"], "--"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it(options, word, capsys):
    assert word in refused(capsys, main([*TRAIN, *options]), word)


def test_unknown_gpus(capsys):
    refused(capsys, main(["plan", "--train", "--gpu", "abacus"]), "abacus")
    refused(capsys, main(["plan", "--train", "--gpu", "cpu"]), "cpu")
    refused(capsys, main(["plan", "--train"]), "--gpu")
