"""``livetalk doctor --memory``, and the memory in the report of ``generate``."""

import json

import pytest
from cli_tools import FAST, generate

from livetalk_model.cli.main import main


def shown(capsys, *options: str) -> str:
    assert main(["doctor", "--memory", *options]) == 0
    return capsys.readouterr().out


def test_the_published_model_in_fp8(capsys):
    options = ["--preset", "14b", "--precision", "fp8", "--size", "768x448"]
    printed = shown(capsys, *options)
    assert max(map(len, printed.splitlines())) <= 80
    for word in ("FP8", "weights", "DiT", "caches", "decoder state", "workspace", "assumed",
                 "total", "encode", "Untested on a GPU"):  # fmt: skip
        assert word in printed
    value = json.loads(shown(capsys, *options, "--json"))
    predicted = value["predicted"]
    parts = [predicted[name]["total"] for name in ("weights", "caches")]
    parts += [predicted["activations"], predicted["workspace"], sum(predicted["assumed"].values())]
    assert predicted["total"] == sum(parts)
    assert value["settings"]["device"] == "cuda" and value["settings"]["dtype"] == "bf16"


def test_measured_next_to_predicted(capsys):
    options = ["--preset", "tiny", "--size", "32x48", "--measure", "--device", "cpu", "--fuse-bias"]
    printed = shown(capsys, *options)
    assert max(map(len, printed.splitlines())) <= 80
    assert "measured" in printed and "difference" in printed and "fused biases" in printed
    value = json.loads(shown(capsys, *options, "--json"))
    assert abs(value["difference"]) < 0.05
    assert value["measured"]["weights"] == value["predicted"]["weights"]
    assert value["predicted"]["assumed"] is None


def test_ranks(capsys):
    printed = shown(capsys, "--preset", "14b", "--ranks", "16")
    assert "ulysses 8 x ring 2" in printed and "Each rank holds all weights" in printed
    value = json.loads(shown(capsys, "--ranks", "6", "--ring", "3", "--json"))
    assert (value["settings"]["ulysses"], value["settings"]["ring"]) == (2, 3)


@pytest.mark.golden
def test_a_checkpoint(golden_checkpoint, capsys):
    folder = str(golden_checkpoint("tiny_a"))
    printed = shown(capsys, "--checkpoint", folder, "--size", "64x64", "--device", "cpu")
    assert "Memory: tiny_a, 64x64, fp32, CPU" in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--preset", "tiny"], "--preset"),
        (["--memory", "--preset", "huge"], "huge"),
        (["--memory", "--size", "100x100"], "--size 100x100"),
        (["--fuse-bias"], "--fuse-bias"),
        (["--memory", "--ulysses", "3"], "--ulysses 3"),
        (["--memory", "--ranks", "8", "--ulysses", "2", "--ring", "2"], "8 ranks"),
        (["--memory", "--measure", "--ranks", "2"], "--measure"),
        (["--memory", "--preset", "tiny", "--checkpoint", "."], "--checkpoint"),
        (["--memory", "--write-manifest", "m"], "--memory"),
    ],
)
def test_what_is_refused(options, named, capsys):
    assert main(["doctor", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error


def test_generate_reports_what_it_holds(portrait, speech, out, capsys):
    common = ["--portrait", portrait, "--audio", speech, "--json", *FAST]
    assert generate(*common, "--output", out / "a.npy") == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    measured, predicted = memory["measured"], memory["predicted"]
    assert measured["weights"] == predicted["weights"]
    assert measured["caches"] == pytest.approx(predicted["caches"]["total"], rel=0.01)
    assert generate(*common, "--no-reuse", "--output", out / "b.npy") == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["predicted"] is None and memory["measured"]["weights"]["total"] > 0
