"""The parts of ``make gpu-report`` with a made-up GPU: no branch for one fails on its first day."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from livetalk_kernels.testing.fake_cuda import FakeCuda

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
DRIVER = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
folder = Path(sys.argv[2])
import gpu_facts, gpu_smoke, graphs, step, stream, vae
from livetalk_kernels.bench import roofline
from livetalk_kernels.testing.fake_cuda import FakeCuda

roofline.GEMM_SIZE["cuda"] = 64  # a CPU takes minutes for a product of a GPU's size
codes = {}
with FakeCuda() as gpu:

    def run(module, *words):
        name = module.__name__
        sys.argv = [name, "--device", "cuda", *words, "--json", str(folder / f"{name}.json")]
        codes[name] = module.main()

    facts = gpu_facts.gather()
    run(gpu_smoke)
    found = json.loads((folder / "gpu_smoke.json").read_text())
    os.environ["LIVETALK_EXCLUDE"] = ",".join(found["excluded"])
    small = ("--preset", "tiny", "--size", "32x32")
    once = (*small, "--rounds", "1")
    run(step, *once, "--precision", "both", "--no-compile")
    run(vae, *once, "--no-compile")
    run(graphs, *once, "--layers", "1")
    run(stream, *small, "--layers", "1", "--chunks", "2", "--cuda-graphs")
value = {"facts": facts, "codes": codes, "calls": gpu.calls}
(folder / "all.json").write_text(json.dumps(value))
"""
WRONG = ("NameError", "TypeError", "AttributeError", "UnboundLocalError", "KeyError")


def test_every_part_runs_on_a_made_up_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(BENCHMARKS), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=290,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    every = result.pop("all")
    assert not every["facts"]["problems"] and every["facts"]["devices"][0]["uuid"]
    assert set(every["codes"].values()) == {0}, done.stdout + done.stderr
    assert all(value["complete"] for value in result.values())
    smoke = {f"{row['op']}={row['backend']}": row for row in result["gpu_smoke"]["rows"]}
    assert smoke["add_norm=triton"]["state"] == "fails"  # there is no driver to launch it
    assert smoke["add_norm=reference"]["state"] == "ok"
    notes = [row["note"] for row in smoke.values() if row["backend"] == "reference"]
    rows = {row["name"]: row for row in result["step"]["rows"]}
    notes += [row["note"] for row in rows.values()]
    for name in ("ours, sdpa", "ours, FP8, sdpa", "ours, sdpa, CUDA graph"):
        assert rows[name]["state"] == "timed", rows[name]["note"]
    for work in ("decode step", "encode"):
        states = {row["name"]: row["state"] for row in result["vae"]["work"][work]}
        assert states["ours"] == states["ours, CUDA graph"] == "timed"
    calls = result["graphs"]["calls"]
    assert {row["state"] for row in calls.values()} == {"timed"} and len(calls) == 3
    assert len(result["stream"]["chunks"]) == 2 and result["stream"]["settings"]["cuda_graphs"]
    assert not [note for note in notes if note.startswith(WRONG)]
    for name in ("synchronize", "replay", "record_stream", "mem_get_info", "set_device"):
        assert every["calls"][name] > 0, name


def parameters(function: Any) -> list[str]:
    """Names of what a function, or a class, is called with."""
    if isinstance(function, type):
        made = function.__init__ if "__init__" in vars(function) else function.__new__
        return [name for name in inspect.signature(made).parameters if name not in ("self", "cls")]
    return list(inspect.signature(function).parameters)


def test_the_made_up_gpu_takes_what_torch_takes() -> None:
    for path, fake in FakeCuda().replacements().items():
        real: Any = torch
        for name in path.split("."):
            real = getattr(real, name)
        if not path.startswith("cuda"):  # in C++
            continue
        own, theirs = parameters(fake), parameters(real)
        assert own == theirs[: len(own)], path
        for name, method in vars(fake).items() if isinstance(fake, type) else ():
            if inspect.isfunction(method) and not name.startswith("_"):
                assert parameters(method) == parameters(getattr(real, name)), f"{path}.{name}"


def test_the_made_up_gpu_refuses_what_a_gpu_refuses() -> None:
    here = torch.ones(3)
    with FakeCuda() as gpu:
        there = torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="at least two devices"):
            here + there
        with pytest.raises(TypeError, match="unexpected keyword argument 'timing'"):
            torch.cuda.Event(timing=True)  # type: ignore[call-arg]
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.cuda.set_device(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            doubled = there * 2
        for forbidden in (lambda: there.sum().item(), there.cpu, torch.cuda.synchronize):
            with (
                pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
                torch.cuda.graph(torch.cuda.CUDAGraph()),
            ):
                forbidden()
        there.fill_(5)
        graph.replay()
        assert doubled.cpu().tolist() == [10, 10, 10] and gpu.calls["replay"] == 1
    assert not torch.cuda.is_available()
