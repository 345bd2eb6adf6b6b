"""Tiles of the FP8 linears in the order of nvMatmulHeuristics, by a stand-in with its interface."""

import enum
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from livetalk_kernels.gpus import GPUS
from livetalk_kernels.inspection import tiles
from livetalk_kernels.inspection.report import Report
from livetalk_kernels.inspection.tiles import OPS, rank
from livetalk_kernels.registry import load_op
from livetalk_model.cli import inspect
from livetalk_model.cli.main import main


class Interface:
    """Asked as version 0.1.0.27 is; 64 kernels of five tiles, among them several equals."""

    def __init__(self, backend, path=None, flags=0, load_discovery_implicitly=True, gpu=None):
        assert (backend.name, flags.name) == ("CUTLASS3", "PERF_MODEL_BASED_AUTO_TUNING")
        self.gpu = gpu

    def makeNvMatmulHeuristicsProblem(self, m, n, k, matmulLayout, batch_size=1):  # noqa: N802
        assert matmulLayout.name == "NT_ROW_MAJOR" and batch_size == 1
        return SimpleNamespace(M=m, N=n, K=k)

    def get(self, problem, count, precision=None):
        assert precision == "QST"
        shapes = [(64, 256), (256, 128), (128, 256), (128, 128), (128, 256)]
        times = [2.0, 1.0 + 1e-12, 1.0, 1.5, 3.0]
        if self.gpu.name == "H20_SXM":
            shapes[3] = 128, 192
        return [
            {"kernel": SimpleNamespace(cta_tile_m=m, cta_tile_n=n), "runtime": time * problem.M}
            for (m, n), time in zip(shapes, times, strict=True)
        ][:count]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nvMatmulHeuristics")
    module.NvMatmulHeuristicsInterfaceEx = Interface
    for name, members in {
        "Target": ["CUTLASS3"],
        "NvidiaGpu": list(tiles._GPUS.values()),
        "Flags": ["PERF_MODEL_BASED_AUTO_TUNING"],
        "MatmulLayout": ["NT_ROW_MAJOR"],
    }.items():
        kind = f"NvMatmulHeuristics{name}"
        setattr(module, kind, enum.IntEnum(kind, list(dict.fromkeys(members))))
    monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", module)


def test_the_model_s_products_are_ranked(library):
    found = rank(OPS, GPUS["h800"])
    cases = {one.case: one for one in found}
    assert {one.op for one in found} == set(OPS)
    one = cases["qkv_14b"]
    assert one.sizes == (12096, 15360, 5120)
    assert one.best == ("256x128", "128x256", "128x128")  # the transposed one is as good
    assert one.places == {"triton 128x256": 1, "cutlass 128x192": None, "cutlass 128x128": 3}
    assert cases["ffn_up_14b"].places == {"triton 128x256": 1, "cutlass 128x128": 3}
    assert [one.op for one in rank(["add_norm", OPS[1]], GPUS["h800"])].count(OPS[0]) == 0


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_every_gpu_of_the_table_has_one_of_theirs(gpu, library):
    (first, *_) = rank(OPS[:1], GPUS[gpu])
    assert GPUS[gpu].name in tiles._GPUS
    names = {name.split()[0] for name in first.places}
    if gpu in ("h100", "h800", "h20", "h200"):
        assert names == {"triton", "cutlass"}
    else:  # a tile that cannot run there has no place
        assert names == ({"triton"} if gpu == "b200" else set())
    assert (first.places.get("cutlass 128x192") == 3) == (gpu == "h20")


def test_the_tiles_are_those_of_the_kernels():
    """What is ranked for Triton is what is launched."""
    from livetalk_kernels.inspection.triton_kernels import launches_of_op

    pytest.importorskip("triton")
    import torch

    for op in OPS:
        launched = {
            name: launches[0].arguments["BLOCK_N"]
            for name, launches in launches_of_op(op, "triton", torch.bfloat16)
        }
        cases = load_op(op).cases(torch.device("meta"), torch.bfloat16)
        for case in (case for case in cases if case.large):
            ((name, (_, columns)), *_) = tiles.our_tiles(case, GPUS["h200"])
            assert (name, columns) == ("triton", launched[case.name])


@pytest.mark.parametrize("failure", [None, "raise OSError('libnvMatmulHeuristics.so.0: no')"])
def test_without_the_library(failure, capsys, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "nvMatmulHeuristics", raising=False)
    if failure is None:
        monkeypatch.setitem(sys.modules, "nvMatmulHeuristics", None)
    else:
        (tmp_path / "nvMatmulHeuristics.py").write_text(failure)
        monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["inspect", "fp8_gemm", "--tiles", "h800"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --tiles: nvMatmulHeuristics is not here (")
    assert error.endswith("pip install 'livetalk[heuristics]'\n") and error.count("\n") == 1
    assert main(["inspect", "--tiles", "h900"]) == 2
    assert "h900" in capsys.readouterr().err


def test_the_table_and_json(library, capsys, monkeypatch):
    report = Report(dtype="bfloat16", date="", commit="", versions={}, kernels=())
    monkeypatch.setattr(inspect, "collect", lambda *args, **keywords: report)
    assert main(["inspect", "--tiles", "h20"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    for text in ("H20 SXM", "12096 x 15360 x 5120", "triton 128x256: 1", "128x192: 3", "measured"):
        assert text in shown
    assert main(["inspect", "fp8_gemm", "--tiles", "h800", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["tiles"][0]["sizes"] == [1512, 15360, 5120]
    assert {one["op"] for one in value["tiles"]} == {"fp8_gemm"}
