"""Every CUDA branch of the benchmark against a stand-in for torch.cuda; and real ones on a GPU."""

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from livetalk_kernels import heap
from livetalk_kernels.bench import clocks as clocks_module
from livetalk_kernels.bench import comm, cuda_timer, roofline, runner
from livetalk_kernels.bench.clocks import Clocks, read_clocks, remark
from livetalk_kernels.bench.cuda_timer import GRAPHS, LAUNCHES, CudaTimer
from livetalk_kernels.bench.roofline import make_probes
from livetalk_kernels.bench.runner import Settings, make_inputs
from livetalk_kernels.bench.tune import Call, Tuner
from livetalk_kernels.precision import FP8
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.testing import fake_nvml
from livetalk_kernels.testing.fake_cuda import READ, WRITE, FakeCuda
from livetalk_model.cli.main import main

SECOND = torch.device("cuda", 1)
CALL = 7e-6  # seconds
FLUSH = WRITE + READ


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Two GPUs, of which the first is current."""
    monkeypatch.setitem(roofline.GEMM_SIZE, "cuda", 64)
    monkeypatch.setattr(roofline, "GPU_BUFFER", 1 << 16)
    for name in ("timer", "cuda_timer"):
        module = __import__(f"livetalk_kernels.bench.{name}", fromlist=["WARM_SECONDS"])
        monkeypatch.setitem(module.WARM_SECONDS, "cuda", 0.0)
    monkeypatch.setattr(cuda_timer, "MAX_CALLS", 4)  # the interpreter is slow
    monkeypatch.setattr(cuda_timer, "PROFILED_CALLS", 2)
    monkeypatch.setattr(heap, "keep_freed_memory", lambda **_: False)
    monkeypatch.setattr(runner, "check_small_cases", lambda *case: (True, "small cases are right"))
    with FakeCuda(2) as fake:
        yield fake


def timed(gpus: FakeCuda, call: Callable[[], object], *, hot: bool = False) -> tuple[float, str]:
    timer = CudaTimer(SECOND, ((), {}), hot=hot)
    sample = timer.start(call)
    gpus.done.clear()
    gpus.notes.clear()
    return sample(), timer.timing


@pytest.mark.parametrize("hot", [False, True])
def test_launching_and_flushing_are_not_in_the_time(gpus, hot):
    seconds, timing = timed(gpus, lambda: gpus.work("call", CALL), hot=hot)
    assert timing == GRAPHS and seconds == pytest.approx(CALL)
    assert gpus.notes == ["replay", "synchronize 1", "replay", "synchronize 1"]
    names = [name for name, _ in gpus.done]
    count = names.count("call")
    if hot:
        assert set(names) == {"event", "call"} and count % 3 == 0
    else:  # each call is behind a write and a read, and what they take is taken off
        step = names[1 : 1 + 3 * count]
        assert step == ["fill_", "sum", "call"] * count
        assert names.count("fill_") == names.count("sum") == 2 * count
    assert {device for _, device in gpus.done} == {1} and gpus.current == 0


def test_a_call_that_cannot_be_captured_is_launched(gpus):
    before = list(gpus.streams)

    def waits() -> None:
        gpus.work("call", CALL)
        torch.cuda.synchronize(SECOND)

    seconds, timing = timed(gpus, waits)
    assert timing == LAUNCHES and seconds == pytest.approx(CALL)
    assert gpus.streams == before, "the failed capture left its stream behind"
    assert {device for _, device in gpus.done} == {1} and gpus.current == 0


def test_memory_that_is_short_is_no_reason_to_launch(gpus):
    def greedy() -> None:
        if gpus.capture is not None:
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaTimer(SECOND, ((), {})).start(greedy)


def test_kernels_alone_are_timed_by_the_profiler(gpus, monkeypatch):
    timer = CudaTimer(SECOND, ((), {}))
    assert timer.kernel_seconds(lambda: gpus.work("call", CALL)) == pytest.approx(CALL)
    monkeypatch.setattr(torch.profiler, "supported_activities", lambda: {ProfilerActivity.CPU})
    assert timer.kernel_seconds(lambda: None) is None


def test_the_fp8_ceiling_multiplies_random_numbers_with_fast_accumulation(gpus, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda a, b, *scales, **k: seen.append((a, b, k)))
    make_probes(SECOND, FP8)["gemm"].run()
    ((a, b, keywords),) = seen
    assert keywords == {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    assert min(len(x.float().unique()) for x in (a, b)) > 50


def test_a_whole_bench_on_a_gpu(gpus, capsys):
    words = ("--shape", "L=4,D=32", "--no-compile", "--rounds", "4", "--device", "cuda:1")
    assert main(["bench", "add_norm", *words]) == 0
    shown = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    for word in ("on cuda", "trials", "Fake H200", "score:"):
        assert word in shown
    assert main(["bench", "rms_norm", "--shape", "L=4,D=32", "--hot", *words[2:], "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    (case,) = report["cases"]
    rows = {row["backend"]: row for row in case["backends"]}
    assert rows["eager"]["timing"] == GRAPHS and rows["eager"]["kernels"] > 0
    assert len(rows["eager"]["trials"]) == 3 and rows["eager"]["time"]["count"] == 4
    assert rows["eager"]["setup"] > 0
    assert not [row for row in rows.values() if row["state"] == "red"]
    assert {device for name, device in gpus.done if name == "event"} == {1}


def test_a_whole_capture_for_nsight(gpus, capsys):
    words = ("--shape", "L=4,D=32", "--no-compile", "--device", "cuda:1", "--ncu")
    assert main(["bench", "add_norm", *words]) == 0
    assert "add_norm/L=4,D=32/eager: marked" in capsys.readouterr().out
    assert gpus.notes[-1] == "stop" and "add_norm/L=4,D=32/eager" in gpus.notes


def test_tuning_on_a_gpu(gpus):
    (case,) = (c for c in load_op("rms_norm").cases(SECOND, torch.float32) if c.name == "odd")
    tuner = Tuner(SECOND, budget=600, approximate=False, say=lambda *words: None)
    (outcome,) = tuner.run([Call(case=case)])
    assert outcome.choice is not None and not outcome.red


def test_messages_are_timed_on_their_own_gpu(gpus):
    part = SimpleNamespace(run=lambda: gpus.work("send", CALL))
    sample = comm._sampler(SimpleNamespace(barrier=lambda: None), part, SECOND)
    assert sample() == pytest.approx(CALL)
    assert {device for name, device in gpus.done if name == "event"} == {1}


def test_clocks_are_read_and_remarked_on(gpus, monkeypatch):
    found = read_clocks(SECOND, fake_nvml)
    assert found == Clocks(
        sm_mhz=1755, memory_mhz=3201, power_w=698, temperature_c=None, held_down_by=("power cap",)
    )
    assert remark(found, found) == "SM clock 1755 to 1755 MHz, held down by power cap"
    monkeypatch.setattr(clocks_module, "find_nvml", lambda: None)
    assert read_clocks(SECOND) is read_clocks(torch.device("cpu")) is None

    def at(sm: float) -> Clocks:
        return Clocks(
            sm_mhz=sm, memory_mhz=None, power_w=None, temperature_c=None, held_down_by=("idle",)
        )

    assert remark(at(1980), at(1950)) is None
    assert remark(at(1980), at(1755)) == "SM clock 1980 to 1755 MHz"


@pytest.mark.gpu
def test_times_on_a_gpu() -> None:
    device = torch.device("cuda", max(1, torch.cuda.device_count()) - 1)  # the last
    case = next(c for c in load_op("add_norm").cases(device, torch.bfloat16) if c.large)
    timer = CudaTimer(device, make_inputs(case))
    cost = load_op("add_norm").cost(case)
    run = load_backend("add_norm", "triton").run
    sample = timer.start(run)
    seconds, kernels = sample(), timer.kernel_seconds(run)
    assert timer.timing == GRAPHS
    assert 1e9 < cost.bytes / seconds < 2e13
    assert kernels is None or 0.3 < kernels / seconds < 3
    limits = roofline.Limits(device).of(case)
    result = runner.bench_case(case, Settings(rounds=3, compile=False), *limits, lambda text: None)
    rows = {row.backend: row for row in result.rows}
    assert rows["triton"].state == "timed" and rows["triton"].timing == GRAPHS
    assert rows["eager"].state == "timed" and 0 < result.floor < 1
