"""Budgets hold what they cost, traces of ranks share a clock, files are JSON whatever is named."""

import json
import time
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from livetalk_kernels.bench import roofline as roofline_module
from livetalk_kernels.bench import timer as timer_module
from livetalk_kernels.bench.cases import select_cases
from livetalk_kernels.bench.roofline import make_probes, start_probes
from livetalk_kernels.bench.timer import MIN_ROUNDS, CpuTimer, interleave
from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import json_bytes, write_json
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_kernels.testing.trace import trace_problems
from livetalk_kernels.units import prefixed

CPU = torch.device("cpu")
SLOW_FLUSH = 0.02  # seconds; a large cache takes longer


@pytest.mark.parametrize(
    ("cost", "seconds", "least", "rounds"),
    [
        (0.1, 1.0, 1, 4),  # two samplers: 0.2 s a round, and one that is not counted
        (0.3, 1.0, 1, 1),  # 0.6 s each: one counts, whatever it takes
        (5.0, 1.0, 1, 1),
        (5.0, 1.0, MIN_ROUNDS, MIN_ROUNDS),  # unless more are wanted
        (0.001, 1.0, 1, 499),
    ],
)
def test_rounds_fit_into_the_time_with_all_that_they_cost(
    monkeypatch, cost, seconds, least, rounds
):
    now = [0.0]
    monkeypatch.setattr(timer_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def sampler() -> float:
        now[0] += cost  # what it returns, the time of the call alone, is much less
        return 1e-6

    samples = interleave({"a": sampler, "b": sampler}, seconds=seconds, least=least)
    assert abs(len(samples["a"]) - rounds) <= rounds // 100  # sums of floats
    assert now[0] <= max(seconds, 2 * cost * (least + 1)) + 1e-6


def test_a_call_that_waits_for_the_flush_is_called_less_often(monkeypatch):
    monkeypatch.setattr(timer_module, "last_level_cache", lambda: 1 << 16)
    flushes: list[CpuTimer] = []

    def flush(self: CpuTimer) -> None:
        if self._buffer is not None:
            flushes.append(self)
            time.sleep(SLOW_FLUSH)

    monkeypatch.setattr(CpuTimer, "_flush", flush)
    sample = CpuTimer(((torch.ones(4),), {})).start(lambda x: x)
    assert len(flushes) == 2  # its own pages, its cost; not one to warm up
    assert sample() < SLOW_FLUSH  # is not in the time
    assert len(flushes) == 3  # one call a sample


def test_probes_are_larger_than_the_cache_and_no_more(monkeypatch):
    monkeypatch.setitem(roofline_module.GEMM_SIZE, "cpu", 64)
    here = SimpleNamespace(available=24 << 30)
    monkeypatch.setattr(roofline_module, "memory", lambda: here)
    for cache, size in ((8 << 20, 32 << 20), (300 << 20, 300 << 20)):
        monkeypatch.setattr(roofline_module, "last_level_cache", lambda cache=cache: cache)
        assert roofline_module.probe_bytes() == size
    here.available = 8 << 20
    assert roofline_module.probe_bytes() == 1 << 20  # 1/8 of what a container has left
    probes = make_probes(CPU, torch.float32)
    assert probes["copy"].amount == 2 << 20
    calls = count()
    monkeypatch.setattr(roofline_module, "_time_once", lambda run: next(calls))
    assert [sample() for sample in start_probes(CPU, probes).values()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("add_norm", "L=0"),
        ("add_norm", "L=0:64:32,D=64"),
        ("rms_norm", "L=8,D=0"),
        ("chunk_attention", "S=0"),
        ("chunk_attention", "L=0"),
        ("fp8_gemm", "M=0"),
        ("fp8_gemm", "K=0"),
        ("rms_norm_silu", "T=0"),
        ("merge_lse", "H=0"),
        ("quantize", "M=0"),
    ],
)
def test_empty_sizes_are_refused(op, shape):
    with pytest.raises(UserError, match=r"--shape .*(nothing to compute|no such sizes|not from 1)"):
        select_cases(op, CPU, torch.float32, shapes=[shape])


def gather_of(rank_0: Timeline) -> Callable[[bytes], list[bytes]]:
    """What the others get from rank 0."""
    sent: list[bytes] = []
    rank_0.align(lambda own: sent.append(own) or [own])
    return lambda own: [sent[0], own]


def traces(monkeypatch: pytest.MonkeyPatch, boots: tuple[str, str]) -> list[dict]:
    """Of two ranks that begin one after the other, of ranges that run at the same time."""
    boot = iter(boots)
    monkeypatch.setattr("livetalk_kernels.runtime.timeline.boot_id", lambda: next(boot))
    ranks = [Timeline(CPU, rank=0, capacity=9)]
    time.sleep(0.05)
    ranks.append(Timeline(CPU, rank=1, capacity=9))
    ranks[1].align(gather_of(ranks[0]))
    with ranks[0].range("together"), ranks[1].range("together"):
        for rank in ranks:
            rank.flow("frames", "main").arrive("main")
    return [rank.trace({}) for rank in ranks]


@pytest.mark.parametrize("boots", [("a", "a"), ("a", "b")], ids=["one machine", "two machines"])
def test_traces_of_ranks_share_one_origin(monkeypatch, boots):
    both = traces(monkeypatch, boots)
    begins = [e["ts"] for trace in both for e in trace["traceEvents"] if e["name"] == "together"]
    assert abs(begins[0] - begins[1]) < 5_000 and begins[0] > 40_000  # us; they began 50 ms apart
    assert both[0]["otherData"]["started"] == both[1]["otherData"]["started"]
    merged = {"traceEvents": [event for trace in both for event in trace["traceEvents"]]}
    assert trace_problems(merged) == []
    assert {event["pid"] for event in merged["traceEvents"]} == {1, 2}
    assert min(event["tid"] for event in merged["traceEvents"]) == 1
    assert len({event["id"] for event in merged["traceEvents"] if "id" in event}) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9.wav", r"caf\xe9.wav"),
        ("\ud83d half", r"\ud83d half"),
        ("\U0001f600 déjà", "\U0001f600 déjà"),
        (r"\udce9", r"\udce9"),
        ('"\n\x1b\x00', '"\n\x1b\x00'),
    ],
)
def test_json_is_valid_whatever_is_named(tmp_path, name, shown):
    value = {"command": ["livetalk", name], name: [name]}
    text = json_bytes(value).decode("utf-8", "strict")
    assert json.loads(text) == {"command": ["livetalk", shown], shown: [shown]}
    assert not any("\ud800" <= letter <= "\udfff" for letter in str(json.loads(text)))
    write_json(tmp_path / "x.json", value, indent=1)
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == json.loads(text)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 "),
        (1.234, "1.23 "),
        (614.2e6, "614 M"),
        (999.6e6, "1 G"),
        (1.2345e9, "1.23 G"),
        (39.94e12, "39.9 T"),
        (1.35e15, "1.35 P"),
    ],
)
def test_rates_have_three_digits_and_their_prefix(value, text):
    assert prefixed(value) == text
