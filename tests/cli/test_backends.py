import json

import pytest

from livetalk_kernels.registry import backend_names, op_names
from livetalk_model.cli.main import main


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_backend_is_listed_with_a_reason_for_every_no(dtype, capsys):
    assert main(["backends", "--device", "cpu", "--dtype", dtype, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["backends"]
    assert {(row["op"], row["backend"]) for row in rows} == {
        (op, name) for op in op_names() for name in backend_names(op)
    }
    for row in rows:
        assert row["runs"] != bool(row["reason"])
    for op in op_names():
        chosen = [row for row in rows if row["op"] == op and row["auto"]]
        assert len(chosen) == 1 and chosen[0]["runs"] and chosen[0]["exact"]


def test_every_op_is_compiled():
    for op in op_names():
        assert "reference" in backend_names(op)
        assert "cpu" in backend_names(op)
        # Library convolutions are under causal_conv3d, hence no Triton there.
        assert ("triton" in backend_names(op)) == (op != "causal_conv3d")


def test_table(capsys):
    assert main(["backends"]) == 0
    shown = capsys.readouterr().out
    assert all(op in shown for op in op_names())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_gpu_that_is_not_here(capsys):
    """Given what is installed, whatever that is: reasons, the choice, what would change it."""
    assert main(["backends", "--gpu", "H100", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["version"] == 2 and value["device"] == "cuda"
    assert value["gpu"]["capability"] == [9, 0] and value["gpu"]["shared_memory"] == 232448
    rows = value["backends"]
    assert {(row["op"], row["backend"]) for row in rows} == {
        (op, name) for op in op_names() for name in backend_names(op)
    }
    chosen = {row["op"]: row["backend"] for row in rows if row["auto"]}
    assert len(chosen) == len(op_names())
    for change in value["changes"]:
        assert change["now"] == chosen[change["op"]] != change["then"] and change["install"]
    assert main(["backends", "--gpu", "h100"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    reasons = [row["reason"] for row in rows if row["reason"]]
    words = " ".join(shown.split())
    assert all(words.count(f" {reason} ") == 1 for reason in {*reasons} if len(reason) < 60)


def test_gpus_without_code_say_so(capsys):
    assert main(["backends", "--gpu", "b200", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["backends"]
    refused = {row["backend"] for row in rows if row["reason"].startswith("needs a Hopper")}
    assert refused == {"cutlass", "flash_attn3", "flash_attn3_fp8"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "h900"], "error: --gpu h900: unknown; choose one of a100, h100"),
        (["--gpu", "h100", "--device", "cpu"], "error: --device cpu: applies to this machine"),
        (
            ["--gpu", "h100", "--config", "t.json"],
            "error: --config t.json: applies to this",
        ),
    ],
)
def test_what_does_not_go_with_a_gpu(arguments, said, capsys):
    assert main(["backends", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(said) and printed.err.count("\n") == 1


def test_bad_device(capsys):
    assert main(["backends", "--device", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("error: --device abacus")
