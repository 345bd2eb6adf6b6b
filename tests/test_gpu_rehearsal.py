"""Runs the parts of ``make gpu-report`` on a simulated GPU, so that no GPU branch is untested."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from livetalk_kernels.registry import backend_names, load_backend, op_names
from livetalk_kernels.testing import fake_nvml
from livetalk_kernels.testing.fake_cuda import FakeCuda
from livetalk_kernels.testing.fake_kernels import KERNELS

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
DRIVER = Path(__file__).with_name("gpu_rehearsal.py")
# Triton's interpreter multiplies bf16 wrongly.
NO_TRUTH = {"audio_attention=triton", "chunk_attention=triton", "context_attention=triton"}


@pytest.mark.timeout(900)
def test_every_part_runs_on_a_made_up_gpu(tmp_path: Path) -> None:
    interpreted = [
        f"{op}={name}"
        for op in op_names()
        for name in backend_names(op)
        if load_backend(op, name).launches is not None
    ]
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(BENCHMARKS), str(tmp_path), ",".join(interpreted)],
        capture_output=True,
        text=True,
        check=False,
        timeout=880,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    every = result.pop("all")
    assert set(every["codes"].values()) == {0}, (every["codes"], done.stderr)
    assert not every["facts"]["problems"] and every["facts"]["devices"][0]["uuid"]
    assert every["facts"]["machine"]["gpu"]["driver"] == "580.00"
    assert all(value["complete"] for name, value in result.items() if name != "comm")
    smoke = {f"{row['op']}={row['backend']}": row for row in result["smoke"]["rows"]}
    states = {name: row["state"] for name, row in smoke.items() if row["state"] != "left out"}
    assert {name for name, state in states.items() if state != "ok"} <= NO_TRUTH, smoke
    assert len(states) > 30 and set(interpreted) <= set(states)
    rows = {row["name"]: row for row in result["step"]["rows"]}
    for name in (
        "ours, sdpa",
        "ours, FP8, sdpa",
        "ours, sdpa_cudnn",
        "ours, FP8, sdpa, CUDA graph",
    ):
        assert rows[name]["state"] == "timed", rows[name]["note"]
    for work in ("decode step", "encode"):
        states = {row["name"]: row["state"] for row in result["vae"]["work"][work]}
        assert states["ours"] == states["ours, CUDA graph"] == "timed"
    calls = result["graphs"]["calls"]
    assert {row["state"] for row in calls.values()} == {"timed"} and len(calls) == 3
    assert len(result["chunk"]["chunks"]) == 2 and result["chunk"]["settings"]["cuda_graphs"]
    report = json.loads((tmp_path / "profile/report.json").read_text())
    assert report["settings"]["cuda_graphs"] and report["settings"]["device"] == "cuda:0"
    runs = {row["ranks"]: row for row in result["scaling"]["runs"]}
    assert [row["state"] for row in runs.values()] == ["done", "done"] and runs[1]["identical"]
    assert runs[2]["mesh"]["world"] == 2 and result["scaling"]["settings"]["device"] == "cuda:0"
    assert result["comm"]["settings"]["engine"] == "NCCL"
    assert {row["state"] for row in result["comm"]["patterns"]} == {"timed"}
    assert result["comm"]["link"]["nvlink_nominal_gb_per_s"] == pytest.approx(478.1, abs=0.1)
    timed = {
        f"{case['op']}={row['backend']}"
        for case in result["ops_all"]["cases"]
        for row in case["backends"]
        if row["state"] == "timed"
    }
    assert {f"{op}=eager" for op in op_names()} < timed and "fp8_gemm=scaled_mm" in timed
    for name in ("batch_isend_irecv", "all_reduce", "broadcast", "new_group", "record_stream"):
        assert every["ranks"][name] > 0, name
    for name in ("synchronize", "replay", "record_stream", "mem_get_info", "set_device", "stream"):
        assert every["calls"][name] > 0, name


def test_a_step_whose_truth_is_missing_takes_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIVETALK_EXCLUDE", "chunk_attention=sdpa_math")
    file = tmp_path / "step.json"
    words = ("--preset", "tiny", "--size", "16x16", "--layers", "1", "--device", "cpu")
    more = ("--attention", "sdpa", "--rounds", "1", "--no-compile", "--json", str(file))
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "step.py"), *words, *more],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = "what is right by reference: sdpa_math is left out by LIVETALK_EXCLUDE"
    assert said in done.stderr
    result = json.loads(file.read_text())
    assert result["settings"]["truth"] == "reference"
    assert {row["state"] for row in result["rows"]} == {"timed"}


def parameters(function: Any) -> list[str]:
    """Names of what a function, or a class, is called with."""
    if isinstance(function, type):
        made = function.__new__ if "__new__" in vars(function) else function.__init__
        return [name for name in inspect.signature(made).parameters if name not in ("self", "cls")]
    return list(inspect.signature(function).parameters)


def test_the_made_up_gpu_takes_what_torch_takes() -> None:
    for path, fake in FakeCuda().replacements().items():
        real: Any = torch
        for name in path.split("."):
            real = getattr(real, name)
        if not path.startswith(("cuda.", "distributed.")):  # in C++, or of fewer parameters
            continue
        own = fake.__mro__[1] if isinstance(fake, type) else fake
        assert set(parameters(own)) <= set(parameters(real)), path
        for name, method in vars(own).items() if isinstance(own, type) else ():
            if inspect.isfunction(method) and not name.startswith("_"):
                assert parameters(method) == parameters(getattr(real, name)), f"{path}.{name}"
    for function, kernel in KERNELS.items():
        if isinstance(function, torch._ops.OpOverloadPacket):
            names = [argument.name for argument in function.default._schema.arguments]
            assert parameters(kernel) == names
    pynvml = pytest.importorskip("pynvml")
    for name, fake in vars(fake_nvml).items():
        if name.startswith(("NVML_", "nvml")):
            real = getattr(pynvml, name)
            assert callable(fake) or fake == real, name


def test_the_made_up_nccl_refuses_what_nccl_refuses(tmp_path: Path) -> None:
    alone = f"file://{tmp_path / 'store'}?rank=0&world_size=1"
    with FakeCuda() as gpu:
        there = torch.ones(2, 3, device="cuda")
        with pytest.raises(AssertionError, match="guesses a GPU"):
            dist.init_process_group("nccl", init_method=alone)
        dist.init_process_group("nccl", init_method=alone, device_id=torch.device("cuda", 0))
        try:
            control = dist.new_group(backend="gloo")
            assert [dist.get_backend(group) for group in (None, control)] == ["nccl", "gloo"]
            dist.all_reduce(there)
            dist.broadcast(torch.ones(1), 0, group=control)
            for call in (
                lambda: dist.all_reduce(torch.ones(1)),
                lambda: dist.all_reduce(there, group=control),
            ):
                with pytest.raises(RuntimeError, match="No backend type"):
                    call()
            with pytest.raises(ValueError, match="contiguous"):
                dist.broadcast(there.T, 0)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
                doubled = there * 2
                dist.all_reduce(doubled)
            there.fill_(4)
            graph.replay()
            assert doubled.eq(8).all() and gpu.calls["all_reduce"] == 4
        finally:
            dist.destroy_process_group()


def test_the_made_up_gpu_refuses_what_a_gpu_refuses() -> None:
    here = torch.ones(3)
    capturing = "not permitted when stream is capturing"
    with FakeCuda() as gpu:
        there = torch.ones(3, device="cuda")
        assert there.device == torch.device("cuda", 0) and here.device.type == "cpu"
        with pytest.raises(RuntimeError, match="at least two devices"):
            here + there
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        with pytest.raises(TypeError, match="unexpected keyword argument 'timing'"):
            torch.cuda.Event(timing=True)  # type: ignore[call-arg]
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.cuda.set_device(1)
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            doubled = there * 2
            there.add_(1)
        assert there.tolist() == [1, 1, 1] and doubled.isnan().all()  # a capture does nothing
        for forbidden in (lambda: there.sum().item(), there.cpu, lambda: there.copy_(here)):
            with (
                pytest.raises(RuntimeError, match="previous error during capture"),
                torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream),
                pytest.raises(RuntimeError, match=capturing),
            ):
                forbidden()
        there.fill_(5)
        graph.replay()
        assert doubled.tolist() == [10, 10, 10] and there.tolist() == [6, 6, 6]
        assert gpu.calls["replay"] == 1
    assert not torch.cuda.is_available() and there.device.type == "cpu"
