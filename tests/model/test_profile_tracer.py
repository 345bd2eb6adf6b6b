"""What the tracer says of ops and layers, and that it changes nothing."""

import pytest
import torch
from torch import nn

from livetalk_kernels.config import KernelConfig
from livetalk_kernels.ops import bind_ops
from livetalk_kernels.registry import load_op, op_names
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.timed_comm import TimedCommunicator
from livetalk_kernels.runtime.timeline import MAIN, Timeline
from livetalk_kernels.spec import KINDS
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.profile.tracer import Tracer, describe_op

CPU, FP32 = torch.device("cpu"), torch.float32


def test_every_op_has_a_part_and_is_described_with_its_own_cost():
    for op in op_names():
        spec = load_op(op)
        cases = [c for c in spec.cases(CPU, torch.bfloat16) if not c.large and c.name != "empty"]
        for case in cases:
            arguments, keywords = spec.make_inputs(case, torch.Generator().manual_seed(0))
            about = describe_op(op, "reference", arguments, keywords)
            assert about["part"] == spec.kind in KINDS
            if all(case.dims.values()) and about["dims"].keys() == case.dims.keys():
                cost = spec.cost(case)
                assert (about["flops"], about["bytes"]) == (cost.flops, cost.bytes), str(case)


def test_results_are_those_of_the_op_and_calls_are_recorded_where_they_ran():
    timeline = Timeline(CPU, capacity=100)
    plain = bind_ops(KernelConfig.from_sources(["reference"]), device=CPU, dtype=FP32)
    traced = Tracer(timeline).wrap(plain)
    assert traced.chosen == plain.chosen
    x, weight = torch.randn(1, 5, 8), torch.randn(8)
    with timeline.range("stage"):
        torch.testing.assert_close(
            traced.rms_norm(x, weight, eps=1e-6), plain.rms_norm(x, weight, eps=1e-6)
        )
    with timeline.range("stage", "beside"):
        traced.rms_norm(x[:, :3], weight, eps=1e-6)
    ranges = timeline.ranges()
    stage, call = ranges[MAIN]
    assert stage.name == "stage" and stage.begin_ns <= call.begin_ns <= call.end_ns <= stage.end_ns
    assert call.about["dims"] == {"B": 1, "L": 5, "D": 8} and call.about["backend"] == "reference"
    assert ranges["beside"][1].about["dims"]["L"] == 3


def test_layers_are_watched_without_touching_what_they_compute():
    timeline = Timeline(CPU, capacity=100)
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(approximate="tanh"), nn.Linear(16, 4))
    x = torch.randn(3, 5, 8)
    before = layers(x)
    Tracer(timeline).watch(layers)
    assert torch.equal(layers(x), before)
    calls = timeline.ranges()[MAIN]
    assert [call.name for call in calls] == ["linear", "gelu", "linear"]
    assert calls[0].about["dims"] == {"M": 15, "N": 16, "K": 8}
    assert calls[0].about["flops"] == 2 * 15 * 16 * 8
    assert calls[0].about["bytes"] == 4 * (15 * 8 + 15 * 16 + 16 * 8 + 16)


def test_a_failing_op_leaves_no_range_open():
    timeline = Timeline(CPU, capacity=100)
    traced = Tracer(timeline).wrap(
        bind_ops(KernelConfig.from_sources(["reference"]), device=CPU, dtype=FP32)
    )
    with pytest.raises(RuntimeError):
        traced.rms_norm(torch.randn(1, 5, 8), torch.randn(9), eps=1e-6)
    with timeline.range("next"):
        pass
    assert [entry.lane for entry in timeline.ranges()[MAIN]] == [MAIN]


def exchange(inner: Communicator) -> list[str]:
    """Names of what a rank records while it sends."""
    timeline = Timeline(CPU, capacity=100)
    timed = TimedCommunicator(inner, timeline)
    peer = 1 - inner.rank
    sent, got = torch.full((3,), float(inner.rank)), torch.empty(3)
    pending = timed.exchange([(peer, sent)], [(peer, got)], kind="ring")
    pending.wait()
    pending.wait()  # does nothing more
    assert torch.equal(got, torch.full((3,), float(peer)))
    rows = timed.all_gather(sent, [3, 3], kind="gather")
    assert rows.tolist() == [0.0] * 3 + [1.0] * 3
    assert timed.all_reduce(torch.ones(1), "sum").item() == 2
    assert timed.broadcast(torch.tensor([float(inner.rank)]), 1).item() == 1
    assert timed.split([[0], [1]]).size == 1 and timed.split([[0, 1]]).size == 2
    timed.barrier()
    assert timed.traffic is inner.traffic and timed.traffic.bytes["ring"] == 12
    entries = timeline.ranges()[MAIN]
    assert all(entry.about["part"] == "communication" for entry in entries)
    return [entry.name for entry in entries]


def test_exchanges_are_recorded_with_their_waits():
    for names in run_ranks(exchange, 2):
        assert names == [
            "ring", "ring", "gather", "gather", "reduce", "broadcast", "barrier",
        ]  # fmt: skip
