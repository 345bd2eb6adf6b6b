"""The benchmark's arithmetic, its choice of cases, and that nothing wrong is timed."""

import csv
import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from livetalk_kernels import machine as machine_module
from livetalk_kernels.backends import cpu
from livetalk_kernels.bench import roofline as roofline_module
from livetalk_kernels.bench import runner
from livetalk_kernels.bench import timer as timer_module
from livetalk_kernels.bench.baseline import compile_reference
from livetalk_kernels.bench.capture import command_line
from livetalk_kernels.bench.cases import parse_shape, select_cases, too_large, too_long
from livetalk_kernels.bench.report import (
    Result,
    Row,
    as_csv,
    compare,
    geometric_means,
)
from livetalk_kernels.bench.roofline import Limits, Probe, Roofline, from_samples, gemm_dtype
from livetalk_kernels.bench.runner import Settings, bench_case, contestants, make_inputs
from livetalk_kernels.bench.timer import CpuTimer, Summary, interleave, ratio
from livetalk_kernels.bench.verify import Judge
from livetalk_kernels.errors import UserError
from livetalk_kernels.heap import keep_freed_memory
from livetalk_kernels.machine import last_level_cache, machine
from livetalk_kernels.precision import FP8
from livetalk_kernels.registry import load_backend, load_op, op_names
from livetalk_kernels.spec import Case, Cost

REPOSITORY = Path(__file__).resolve().parents[2]
CPU, FP32 = torch.device("cpu"), torch.float32
FAST = Roofline(bandwidth=1e12, rate=1e12)
QUICK = Settings(rounds=2, compile=False)
DropIn = Callable[[str, str], None]

WRONG = """
from livetalk_kernels.ops.add_norm import reference


def supports(case):
    return None


def run(x, y, gate, weight, bias, *, eps=1e-6):
    if x.numel() > {limit}:
        {fault}
    return reference.run(x, y, gate, weight, bias, eps=eps)
"""


pytestmark = pytest.mark.usefixtures("small_machine")


def case_of(op: str, name: str, dtype: torch.dtype = FP32) -> Case:
    return next(case for case in load_op(op).cases(CPU, dtype) if case.name == name)


def bench(case: Case, settings: Settings = QUICK) -> dict[str, Row]:
    probes, rough = Limits(CPU).of(case)
    result = bench_case(case, settings, probes, rough, lambda text: None)
    return {row.backend: row for row in result.rows}


def test_the_limit_of_bf16_is_no_emulation(isa: str) -> None:
    product = roofline_module.make_probes(CPU, torch.bfloat16)["gemm"].run()
    assert product.dtype == (torch.bfloat16 if isa in cpu.BF16_ISAS else FP32)


def test_summary() -> None:
    summary = Summary.of([float(n) for n in (5, 1, 2, 4, 3, 0)])
    assert (summary.count, summary.least, summary.most) == (6, 0, 5)
    assert (summary.p20, summary.p50, summary.p80) == (1, 2.5, 4)
    assert summary.spread == pytest.approx(3 / 2.5)


def test_ratio_goes_round_by_round() -> None:
    # The machine slows down tenfold; each round says 2 x, the medians say 20 / 3.
    assert ratio([2, 20, 20], [1, 10, 10]) == 2
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == 2


def test_rounds_alternate_and_begin_with_another_one() -> None:
    order: list[str] = []
    clock = itertools.count()

    def sampler(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or float(next(clock))

    samples = interleave({name: sampler(name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the first round is not counted
    assert samples == {"a": [3, 8, 10], "b": [4, 6, 11], "c": [5, 7, 9]}


def test_rounds_by_time() -> None:
    assert len(interleave({"a": lambda: 1.0}, seconds=0.0)["a"]) == timer_module.MIN_ROUNDS
    begin = time.perf_counter()
    samples = interleave({"a": lambda: time.sleep(0.01) or 1.0}, seconds=0.15)["a"]
    assert timer_module.MIN_ROUNDS < len(samples) <= 14
    assert time.perf_counter() - begin > 0.05


def seen_inputs(timer: CpuTimer) -> list[tuple[Tensor, ...]]:
    seen: list[tuple[Tensor, ...]] = []
    timer.start(lambda *tensors, **keywords: seen.append(tensors))()
    return seen


def test_cold_inputs_are_copies_that_fill_the_cache_twice() -> None:
    both = torch.randn(64, 2, 32)  # 16 KiB, of which a and b are halves
    a, b = both.unbind(1)
    timer = CpuTimer(((a, b), {}))
    assert timer.copies == 8 and not timer.flushes
    seen = seen_inputs(timer)
    assert len({pair[0].data_ptr() for pair in seen}) == 8
    for first, second in seen:
        assert first.stride() == a.stride() and torch.equal(first, a) and torch.equal(second, b)
        assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_small_inputs_are_flushed_and_hot_ones_stay() -> None:
    small = torch.ones(4)
    timer = CpuTimer(((small,), {}))
    assert timer.flushes and timer.copies == 1
    assert timer.prepare()[0][0] is small
    large = torch.ones(1 << 16)
    assert CpuTimer(((large,), {})).copies == 2
    hot = CpuTimer(((large,), {}), hot=True)
    assert hot.copies == 1 and not hot.flushes


def test_a_sample_is_the_time_of_one_call() -> None:
    sample = CpuTimer(((), {}), hot=True).start(lambda: time.sleep(0.002))
    assert 0.002 <= sample() < 0.02


def test_floor() -> None:
    roofline = Roofline(bandwidth=10.0, rate=100.0)
    assert roofline.floor(Cost(flops=100, bytes=20)) == 2.0
    assert roofline.bound(Cost(flops=100, bytes=20)) == "memory"
    assert roofline.floor(Cost(flops=900, bytes=20)) == 9.0
    assert roofline.bound(Cost(flops=900, bytes=20)) == "compute"


def test_limits_are_the_best_probes_medians() -> None:
    probes = {
        "copy": Probe(run=int, amount=10, limit="bandwidth"),
        "sum": Probe(run=int, amount=30, limit="bandwidth"),
        "gemm": Probe(run=int, amount=100, limit="rate"),
    }
    samples = {"copy": [1.0, 2.0, 9.0], "sum": [3.0, 3.0, 4.0], "gemm": [50.0]}
    assert from_samples(probes, samples) == Roofline(bandwidth=10.0, rate=2.0)
    del samples["gemm"]
    rough = Roofline(bandwidth=1.0, rate=7.0)
    assert from_samples(probes, samples, rough) == Roofline(bandwidth=10.0, rate=7.0)


def test_rates_of_a_result() -> None:
    case = case_of("add_norm", "one")
    samples = {"eager": [4.0, 4.0, 8.0], "compile": [2.0, 2.0, 4.0], "cpu": [1.0, 1.0, 2.0]}
    rows = [Row(backend=name, state="timed", note="") for name in samples]
    rows.append(Row(backend="toy", state="red", note="wrong"))
    result = Result(
        case=case,
        cost=Cost(flops=10**12, bytes=2 * 10**9),
        roofline=Roofline(bandwidth=4e9, rate=1e13),
        copies=1,
        clocks=(None, None),
        rows=compare(rows, [samples, {name: [2 * x for x in xs] for name, xs in samples.items()}]),
    )
    cpu, toy = result.rows[2], result.rows[3]
    assert (cpu.vs_eager, cpu.vs_compile) == (4.0, 2.0)
    assert cpu.trials == (1.0, 2.0) and cpu.trial_spread == pytest.approx(1 / 1.5)
    result = replace(result, rows=compare(rows, [samples]))
    cpu = result.rows[2]
    assert cpu.trials == (1.0,) and cpu.trial_spread is None
    assert result.rates(cpu) == {"gb_per_s": 2.0, "tflop_per_s": 1.0, "of_floor": 0.5}
    assert toy.time is None and set(result.rates(toy).values()) == {None}
    entry = result.as_json()
    assert entry["floor"] == 0.5 and entry["bound"] == "memory"
    assert [row["of_floor"] for row in entry["backends"]] == [0.125, 0.25, 0.5, None]
    lines = list(csv.DictReader(io.StringIO(as_csv([result]))))
    assert [line["backend"] for line in lines] == ["eager", "compile", "cpu", "toy"]
    assert lines[2]["p50_us"] == "1e+06" and lines[3]["p50_us"] == "" and lines[3]["note"]
    other = compare(
        [replace(row, time=None) for row in rows], [samples | {"cpu": [16.0, 16.0, 32.0]}]
    )
    means = geometric_means([result, replace(result, rows=other)])
    assert [mean.backend for mean in means] == ["cpu"]
    assert means[0].cases == 2 and means[0].vs_eager == pytest.approx(1.0)
    assert means[0].least_vs_compile == (0.125, "add_norm one")
    assert geometric_means([result]) == []


@pytest.mark.parametrize(
    ("cost", "settings", "trials"),
    [
        (0.01, Settings(seconds=0.3), 3),
        (1.0, Settings(seconds=3.0), 3),  # 5 rounds or more, whatever they take: 2 each
        (5.0, Settings(seconds=1.0, least=1), 1),  # what the user says is kept to
        (5.0, Settings(rounds=7), 3),
        (5.0, Settings(rounds=2), 2),
    ],
)
def test_trials_fill_the_time(cost, settings, trials, monkeypatch) -> None:
    now = [0.0]

    class Timer:
        def start(self, run, *, again=False):
            def sample() -> float:
                now[0] += cost
                return cost

            return sample

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    for module in (timer_module, runner):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(runner, "make_timer", lambda *arguments, **keywords: Timer())
    monkeypatch.setattr(runner, "start_probes", lambda device, probes: {})
    monkeypatch.setattr(runner, "from_samples", lambda probes, samples, rough: rough)
    row = Row(backend="cpu", state="timed", note="")
    entry = runner.Contestant(row=row, run=lambda: None)
    case = case_of("add_norm", "odd")
    result = runner._time(case, ((), {}), [entry], settings, {}, FAST, lambda text: None)
    (timed,) = result.rows
    assert timed.time is not None and len(timed.trials) == trials and timed.timing == "clock"
    if settings.rounds is not None:
        assert timed.time.count == settings.rounds


def test_a_packed_weight_is_setup(monkeypatch) -> None:
    """As in the model, which packs once."""
    case = case_of("causal_conv3d", "channels_last")
    packs: list[int] = []
    backend = load_backend("causal_conv3d", "library")
    counted = replace(backend, name="cpu", pack=lambda weight: packs.append(1))
    monkeypatch.setattr(runner, "backend_names", lambda op: ["reference", "cpu"])
    monkeypatch.setattr(
        runner, "load_backend", lambda op, name: counted if name == "cpu" else backend
    )
    rows = bench(case)
    assert packs == [1] and rows["cpu"].state == "timed" and rows["cpu"].setup is not None


def test_shapes() -> None:
    assert parse_shape("L=1512,D=5120") == {"L": (1512,), "D": (5120,)}
    assert parse_shape("L=1,2,3,D=8") == {"L": (1, 2, 3), "D": (8,)}
    assert parse_shape("L=512:2048:512") == {"L": (512, 1024, 1536, 2048)}
    for text in ("", "5", "L=", "L=a", "L=1:2", "L=4:2:1", "L=1:2:0", "L=-1", "L=1.5", "=3"):
        with pytest.raises(UserError, match="--shape"):
            parse_shape(text)


def test_a_sweep_keeps_all_else() -> None:
    cases = select_cases("rms_norm_rope", CPU, FP32, shapes=["L=2,3,d=8,16", "L=5"])
    assert [case.name for case in cases] == [
        "L=2,d=8", "L=2,d=16", "L=3,d=8", "L=3,d=16", "L=5",
    ]  # fmt: skip
    base = case_of("rms_norm_rope", "14b_ulysses8")
    assert all(case.options == base.options for case in cases)
    assert cases[1].dims == {**base.dims, "L": 2, "d": 16} and cases[1].large


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(UserError, match="rms_norm_rope has no size D; it has B, L, H, d, S"):
        select_cases("rms_norm_rope", CPU, FP32, shapes=["D=5120"])
    with pytest.raises(UserError, match="no such sizes: the RoPE table ends before"):
        select_cases("rms_norm_rope", CPU, FP32, shapes=["S=100"])
    with pytest.raises(UserError, match="256 at most"):
        select_cases("add_norm", CPU, FP32, shapes=["L=1:1000:1"])
    with pytest.raises(UserError, match="400 combinations"):
        select_cases("add_norm", CPU, FP32, shapes=["L=1:20:1,D=64:1280:64"])


def test_default_cases() -> None:
    cuda = torch.device("cuda")
    for op in op_names():
        dtype = load_op(op).dtypes[0]
        large = [case for case in load_op(op).cases(CPU, dtype) if case.large]
        here = select_cases(op, CPU, dtype)
        assert here and all(case in large for case in here)
        assert len(select_cases(op, cuda, dtype)) == len(large)
        assert select_cases(op, CPU, dtype, names=["model"]) == large
        assert gemm_dtype(large[0]) == (FP8 if op.startswith("fp8") else dtype)
    assert [case.name for case in select_cases("add_norm", CPU, FP32)] == ["14b_ulysses8"]
    assert select_cases("add_norm", CPU, FP32, names=["mid_full"]) == []


def test_cases_that_take_too_much() -> None:
    case = case_of("chunk_attention", "14b")
    assert "minutes; --case 14b" in (too_long(case, Roofline(bandwidth=1e10, rate=1e11)) or "")
    assert too_long(case, Roofline(bandwidth=1e15, rate=1e15)) is None
    huge = replace(case, dims={**case.dims, "B": 10**6})
    assert "are free" in (too_large(huge) or "")
    assert too_large(case_of("chunk_attention", "odd")) is None


def test_times_what_is_right() -> None:
    rows = bench(case_of("add_norm", "odd"))
    assert rows["eager"].vs_eager == 1.0 and "against fp64" in rows["eager"].note
    for row in rows.values():
        assert (row.time is not None) == (row.state == "timed")
    assert rows["eager"].time is not None and rows["eager"].time.count == 2
    assert sum(row.auto for row in rows.values()) == 1


@pytest.mark.parametrize(
    ("limit", "fault", "note"),
    [
        (100, "x = x * 1.001", "by bad: output 0: relative L2"),  # the small cases show it
        (2**17, "x = x * 1.001", "against fp64: output 0: relative L2"),  # just the timed one does
        (100, "raise KeyError('toy')", "KeyError: 'toy'"),
    ],
)
def test_what_is_wrong_is_red_and_not_timed(
    limit: int, fault: str, note: str, drop_in: DropIn
) -> None:
    drop_in("add_norm/bad.py", WRONG.format(limit=limit, fault=fault))
    case = replace(case_of("add_norm", "small"), dims={"B": 1, "L": 200, "D": 1000}, large=True)
    rows = bench(case)
    assert rows["bad"].state == "red" and note in rows["bad"].note
    assert rows["bad"].time is None and rows["bad"].vs_eager is None
    assert rows["eager"].state == "timed"


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16])
def test_where_fp64_takes_too_long_the_reference_decides(dtype: torch.dtype) -> None:
    case = case_of("add_norm", "odd", dtype)
    slow = Roofline(bandwidth=1.0, rate=1.0)
    judge = Judge(case, make_inputs(case), slow)
    assert judge.measure == "reference"
    plain = load_backend("add_norm", "reference").run
    assert judge.check(plain, is_reference=True)[0]
    assert judge.check(lambda x, *rest, **keywords: plain(x * 1.0, *rest, **keywords))[0]
    ok, reason = judge.check(lambda x, *rest, **keywords: plain(x * 1.1, *rest, **keywords))
    assert not ok and "against reference" in reason


@pytest.mark.parametrize("op", ["quantize", "fp8_gemm", "chunk_attention", "merge_lse"])
def test_every_kind_of_output_is_judged(op: str) -> None:
    case = next(case for case in load_op(op).cases(CPU, torch.bfloat16) if case.name == "odd")
    plain = load_backend(op, "reference").run
    for roofline in (FAST, Roofline(bandwidth=1.0, rate=1.0)):
        judge = Judge(case, make_inputs(case), roofline)
        ok, reason = judge.check(plain)
        assert ok, reason
        ok, _ = judge.check(
            lambda first, *rest, **keywords: plain(torch.zeros_like(first), *rest, **keywords)
        )
        assert not ok


def test_who_takes_part(drop_in: DropIn) -> None:
    drop_in("add_norm/small.py", "def supports(case):\n    return 'too wide'\n\n\nrun = None\n")
    case = case_of("add_norm", "odd")
    found = {entry.row.backend: entry for entry in contestants(case, Settings())}
    assert "reference" not in found and found["eager"].run is not None
    assert found["small"].row.state == "left out" and found["small"].row.note == "too wide"
    assert found["triton"].run is None and "interpreter" in found["triton"].row.note
    named = {row.row.backend: row for row in contestants(case, Settings(backends=("triton",)))}
    assert named.keys() == {"eager", "triton"} and named["triton"].run is not None


def test_compiled_baseline() -> None:
    case = case_of("add_norm", "odd")
    arguments = make_inputs(case)
    run, reason = compile_reference("add_norm", arguments)
    assert run is not None, reason
    ok, errors = Judge(case, arguments, FAST).check(run)
    assert ok, errors
    with torch._inductor.config.patch({"cpp.cxx": ("no-compiler",), "force_disable_caches": True}):
        run, reason = compile_reference("add_norm", arguments)
    assert run is None and "No working C++ compiler" in reason and "\n" not in reason


def test_compile_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "compile_reference", lambda op, arguments: (None, "no compiler"))
    rows = bench(case_of("add_norm", "odd"), replace(QUICK, compile=True))
    assert rows["compile"].state == "left out" and rows["compile"].note == "no compiler"
    assert rows["eager"].vs_compile is None


def test_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine()
    monkeypatch.chdir(tmp_path)  # where it is started from does not matter
    assert machine() == before
    wanted = {"cpu", "gpu", "threads", "torch", "triton", "python", "livetalk", "commit", "date"}
    assert wanted <= before.keys() and before["cpu"]
    assert last_level_cache() >= 1 << 18
    monkeypatch.setattr(machine_module, "REPOSITORY", tmp_path)
    assert machine_module.commit() == ""


def test_freed_memory_is_kept() -> None:
    """In a process of its own, since it cannot be undone."""
    code = f"""if True:
        import resource, torch
        from {keep_freed_memory.__module__} import CALLS_UNTIL_KEPT, keep_freed_memory
        assert keep_freed_memory()
        torch.set_num_threads(1)
        for _ in range(CALLS_UNTIL_KEPT + 1):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(16 << 18)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_command_lines_of_profilers() -> None:
    line = command_line("ncu", ["bench", "add_norm", "--shape", "L=1 2", "--ncu"])
    assert line.startswith("ncu --profile-from-start off")
    assert line.endswith("livetalk bench add_norm --shape 'L=1 2' --ncu")
    assert "--capture-range cudaProfilerApi" in command_line("nsys", [])


def test_a_suite_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "-k", "rms_norm- and bfloat16", "--benchmark-disable",
            str(REPOSITORY / "benchmarks/test_bench_ops.py"),
        ],
        capture_output=True, text=True, check=False, timeout=200, cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
