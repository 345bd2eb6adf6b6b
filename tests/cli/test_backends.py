import json

import pytest

from livetalk_kernels.dispatch import backend_names, op_names
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
        assert {"reference", "cpu"} <= set(backend_names(op))
        # Library convolutions lie under causal_conv3d, hence no Triton there.
        assert ("triton" in backend_names(op)) == (op != "causal_conv3d")


def test_table(capsys):
    assert main(["backends"]) == 0
    shown = capsys.readouterr().out
    assert all(op in shown for op in op_names())
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_bad_device(capsys):
    assert main(["backends", "--device", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("error: --device abacus")
