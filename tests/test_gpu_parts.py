"""What the parts of ``make gpu-report`` measure: scripts that run on a CPU too."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ops_all
import pytest
import race
import random_models
import scaling
import step
import stream
import torch
import vae
from gpu_report import pages as gpu_pages
from gpu_report import plots as gpu_plots

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.bench.roofline import Roofline
from livetalk_kernels.bench.runner import Settings
from livetalk_kernels.registry import load_op
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import relative_l2
from livetalk_model.stream.team import Team

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

# Packages of livetalk that a machine with a GPU may be without.
ABSENT = "rich av transformers pytest PIL matplotlib sentencepiece ftfy safetensors psutil pynvml"

# The race --------------------------------------------------------------------------------------


def entrant(name: str, result: Any, **options: Any) -> race.Entrant:
    def build() -> race.Run:
        if isinstance(result, Exception):
            raise result
        return lambda: result

    return race.Entrant(name=name, build=build, bound=1e-3, **options)


def started(tmp_path: Path, budget: float | None = None) -> race.Race:
    output = race.Output(tmp_path / "out.json")
    return race.Race(torch.ones(4), torch.device("cpu"), race.Budget(budget), output)


def test_wrong_and_failing_ways_are_not_timed(tmp_path: Path) -> None:
    found = started(tmp_path)
    right, wrong, nan = torch.ones(4), torch.ones(4) * 1.1, torch.full((4,), torch.nan)
    found.group(
        [
            entrant("base", right, base=2), entrant("wrong", wrong), entrant("nan", nan),
            entrant("broken", RuntimeError("no such kernel")), entrant("right", right),
            entrant("absent", right, reason="runs on cuda, not on cpu"),
        ],
        rounds=4,
    )  # fmt: skip
    found.group([entrant("late", right)], rounds=1)
    rows = {row["name"]: row for row in found.rows}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {
        "base": "timed", "wrong": "red", "nan": "red", "broken": "failed", "right": "timed",
        "absent": "left out", "late": "timed",
    }  # fmt: skip
    assert rows["wrong"]["seconds"] is None and "differs by 1.0e-01" in rows["wrong"]["note"]
    assert rows["broken"]["note"] == "RuntimeError: no such kernel"
    assert rows["right"]["seconds"]["count"] == 4 and len(rows["right"]["samples"]) == 4
    assert rows["late"]["against"].keys() == {"base"} == rows["right"]["against"].keys()
    assert race.exit_code(found.rows) == 1 and race.exit_code([rows["right"]]) == 0
    assert not found.out_of_time


def test_what_has_no_time_is_left_out(tmp_path: Path) -> None:
    found = started(tmp_path, budget=0.0)
    found.group([entrant("first", torch.ones(4))], rounds=3)
    assert found.rows[0]["state"] == "left out" and found.out_of_time
    later = started(tmp_path, budget=5.0)
    later.group([entrant("slow to build", torch.ones(4), seconds=10.0)], rounds=3)
    assert later.rows[0]["note"] == race.NO_TIME


# The scripts -----------------------------------------------------------------------------------


def script(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run one on the CPU and read its JSON."""
    file = folder / f"{Path(name).stem}.json"
    small = ("--preset", "tiny", "--device", "cpu", "--threads", "1")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *small, *arguments, "--json", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    value = json.loads(file.read_text())
    assert value["complete"] and value["machine"]["torch"]
    return value


def page(folder: Path, part: str, result: Mapping[str, Any]) -> str:
    """The part of a page about a result, and check that its picture is one."""
    (name,) = gpu_plots.draw(part, result, folder, "a machine")
    assert (folder / name).read_bytes().startswith(b"\x89PNG")
    return "\n".join(gpu_pages.section(part, result))


def test_a_step_in_all_ways(tmp_path: Path) -> None:
    options = ("--layers", "2", "--rounds", "1", "--no-compile", "--precision", "both")
    result = script(tmp_path, "step.py", *options)
    rows = {row["name"]: row for row in result["rows"]}
    timed = {name for name, row in rows.items() if row["state"] == "timed"}
    assert timed >= {"published, sdpa_flash", "ours, FP8, sdpa, torch kernels", "ours, FP8, cpu"}
    assert rows["ours, FP8, sdpa_cudnn"]["note"] == "runs on cuda, not on cpu"
    assert rows["published, sdpa_flash"]["error"] < 1e-5
    ours = rows["ours, FP8, sdpa"]
    assert 1e-3 < ours["error"] < 0.25 and ours["approximate"] and ours["of_floor"] > 0
    assert ours["against"].keys() == {"published, sdpa_flash", "ours, sdpa"}
    exact = rows["ours, sdpa"]
    assert exact["error"] < 1e-5 and not exact["approximate"] and timed >= {"ours, cpu"}
    assert result["settings"]["layers"] == 2 and result["settings"]["layers_of_preset"] == 4
    text = page(tmp_path, "step", result)
    assert "ours, FP8, sdpa (approximate)" in text and "x published, sdpa_flash" in text
    assert "TFLOP/s in float32" in text


def test_exact_ways_agree_and_so_does_the_compiled_one() -> None:
    args = step.make_parser().parse_args([])
    preset, cpu = random_models.sized("tiny", layers=1), torch.device("cpu")
    with torch.inference_mode():
        field = step.Field(args, preset, cpu, torch.float32)
        (_, truth), latent = field.truth(), field.given.latent
        ours = field.ours("cpu").build()()
        published = field.published("sdpa_flash", None, compile_it=False).build()()
        ops = random_models.bind(preset, KernelConfig.parse(random_models.TORCH), cpu, truth.dtype)
        plain = random_models.make_dit(preset, ops, reuse=False)
        random_models.share(field.weights, plain)
        fused = step.compiled(plain, ops, "aot_eager")
        compiled = random_models.published_step(fused, field.given)(latent)
    for found in (ours, published, compiled):
        assert relative_l2(found, truth) < 1e-5


def test_attention_that_cannot_run_is_refused() -> None:
    case = Case(op=step.OP, device=torch.device("cpu"), dtype=torch.float32, dims={"d": 64})
    for name, words in (("nothing", "there is no such backend"), ("sdpa_cudnn", "cannot run")):
        args = step.make_parser().parse_args(["--attention", name])
        with pytest.raises(UserError, match=words):
            step.attention_backends(args, case)
    names = list(step.attention_backends(step.make_parser().parse_args([]), case))
    assert names[-2:] == ["triton", "triton_fp8"]  # what may break a GPU's context comes last


def test_flops_of_a_14b_step_are_those_of_the_design() -> None:
    work = step.Work.of(random_models.sized("14b"))
    assert work.linears / 1e12 == pytest.approx(340, rel=0.02)
    assert work.attention / 1e12 == pytest.approx(120, rel=0.02)
    assert work.total / 1e12 == pytest.approx(468, rel=0.02)
    rates = {torch.bfloat16: 1e12, torch.float32: 2e12}
    floor = work.floor(rates, torch.float32, torch.bfloat16, torch.bfloat16)
    assert floor == pytest.approx(340 / 2 + 128, rel=0.02)


def test_what_weights_take_is_what_is_allocated() -> None:
    preset, cpu = random_models.sized("tiny", layers=1), torch.device("cpu")
    plain = KernelConfig.parse(random_models.TORCH)
    ops = random_models.bind(preset, plain, cpu, torch.bfloat16)
    models = {}
    for fp8 in (False, True):
        dit = models[fp8] = random_models.make_dit(preset, ops, fp8=fp8)
        random_models.fill(dit, dtype=torch.bfloat16, device=cpu)
        held = sum(p.numel() * p.element_size() for p in dit.parameters())
        assert held == random_models.parameter_bytes(preset.dit, torch.bfloat16, fp8=fp8)
    exact = models[False].get_parameter("blocks.0.ffn.0.weight").float()
    scale = models[True].get_parameter("blocks.0.ffn.0.weight_scale")
    quantised = models[True].get_parameter("blocks.0.ffn.0.weight").float() * scale
    assert 0 < float((quantised - exact).norm() / exact.norm()) < 0.05


def test_the_vae_in_both_schedules(tmp_path: Path) -> None:
    options = ("--size", "32x32", "--rounds", "1", "--no-compile")
    result = script(tmp_path, "vae.py", *options)
    for work in ("decode step", "decode chunk", "encode"):
        rows = {row["name"]: row for row in result["work"][work]}
        assert rows["ours"]["state"] == "timed" and rows["ours"]["error"] < 1e-5
        assert rows["ours"]["against"].keys() == {"published"}
        assert result["flops"][work] > 0
    assert "decode chunk" in page(tmp_path, "vae", result)


def test_a_vae_without_time_is_no_error(tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--device", "cpu", "--size", "32x32", "--no-compile"]
    args = vae.make_parser().parse_args([*words, "--json", str(tmp_path / "vae.json")])
    value = vae.measure(args, race.Budget(0.0)).value
    states = {row["state"] for rows in value["work"].values() for row in rows}
    assert states == {"left out"} and not value["complete"]
    assert "no time was left" in vae.table(value)
    assert "left out" in "\n".join(gpu_pages.section("vae", value))


def test_chunks_without_time_are_not_begun(tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--device", "cpu", "--threads", "1", "--layers", "1"]
    args = stream.make_parser().parse_args([*words, "--json", str(tmp_path / "chunk.json")])
    device, dtype = torch.device("cpu"), torch.float32
    value = stream.measure(args, Team(), device, dtype, race.Budget(until=0.0))
    assert value is not None and len(value["chunks"]) == 1 and not value["complete"]
    assert json.loads((tmp_path / "chunk.json").read_text())["chunks"]


def test_chunks_of_a_stream_are_whole(tmp_path: Path) -> None:
    result = script(tmp_path, "stream.py", "--layers", "1", "--chunks", "3")
    assert len(result["chunks"]) == 3 and result["frames"] == 3 * 28
    assert "encode" in result["chunks"][-1]["stages"]  # the last one continues, too
    assert result["steady"]["count"] == 2
    assert "p50 of 2, all but the first: " in page(tmp_path, "chunk", result)


def test_a_step_needs_little_more_than_torch() -> None:
    blocker = f"""
import importlib.abc, runpy, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, {str(BENCHMARKS)!r})
import vae, ops_all, smoke, graphs, scaling, gpu_report.facts, gpu_report.__main__
sys.argv = ["step.py", "--help"]
runpy.run_path({str(BENCHMARKS / "step.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", blocker], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--attention NAME" in done.stdout, done.stderr


def test_ranks_are_compared_with_the_fewest(tmp_path: Path) -> None:
    result = script(tmp_path, "scaling.py", "--ranks", "1", "2", "--layers", "1", "--chunks", "2")
    one, two = result["runs"]
    assert one["state"] == two["state"] == "done" and two["against_ranks"] == 1
    assert one["identical"] and (two["identical"] or two["psnr"] > 60)
    assert two["chunk"]["fps"] > 0 and two["mesh"]["world"] == 2
    assert two["chunk"]["count"] == 1
    assert "ranks chunks" in page(tmp_path, "scaling", result)


def test_frames_that_differ_are_red() -> None:
    chunk = {"seconds": 1.0, "stages": {"decode": 1.0}}
    value = {
        "settings": {"dtype": "float32", "ranks": {"world": 1}},
        "steady": {"p50": 1.0}, "chunks": [chunk, chunk],
    }  # fmt: skip
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert scaling.compare(value, value, frames, frames)["state"] == "done"
    other = frames.copy()
    other[0] = 9
    assert scaling.compare(value, value, other, frames)["state"] == "red"
    assert scaling.compare(value, value, frames[:1], frames)["state"] == "red"
    noisy = frames.copy()
    noisy[0] = 2  # 45 dB: what bf16 may do, and fp32 may not
    assert scaling.compare(value, value, noisy, frames)["state"] == "red"
    coarse = value | {"settings": {**value["settings"], "dtype": "bfloat16"}}
    assert scaling.compare(coarse, value, noisy, frames)["state"] == "done"


def test_ops_continue_from_their_file(tmp_path: Path) -> None:
    cases = load_op("merge_lse").cases(torch.device("cpu"), torch.float32)
    small = next(case for case in cases if all(case.dims.values()))
    settings = Settings(compile=False, rounds=1, hot=True)
    limits: Any = SimpleNamespace(of=lambda case: ({}, Roofline(bandwidth=1e9, rate=1e9)))
    entry = ops_all.timed(small, settings, limits, race.Budget(None), "")
    late = ops_all.timed(small, settings, limits, race.Budget(0), "")
    limits.of = None
    broken = ops_all.timed(small, settings, limits, race.Budget(None), "")
    assert (late.pop("in"), broken.pop("in")) == ("skipped", "failed")
    output = race.Output(
        tmp_path / "ops.json",
        schema=ops_all.SCHEMA,
        settings={"dtype": "float32"},
        cases=[entry],
        skipped=[late],
        failed=[broken],
    )
    output.write()
    now = {"machine": output.value["machine"], "dtype": "float32"}
    known, failed = ops_all.earlier(tmp_path / "ops.json", now)
    assert list(known.values()) == [json.loads(json.dumps(entry))]
    assert failed == {("merge_lse", small.name)}
    for name in ("commit", "torch", "gpu"):
        other = now | {"machine": now["machine"] | {name: "another"}}
        assert ops_all.earlier(tmp_path / "ops.json", other) == ({}, set())
    assert ops_all.earlier(tmp_path / "ops.json", now | {"dtype": "bfloat16"}) == ({}, set())
    text = page(tmp_path, "ops", output.value)
    assert "merge_lse" in text and "cpu" in text and "failed: TypeError" in text
    assert "no time was left" in text
