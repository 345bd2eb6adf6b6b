"""What a benchmark says at its end: our score, and whether auto picks the fastest backend."""

from dataclasses import replace

import pytest
import torch

from livetalk_kernels.bench.report import Result, Row, auto_verdict, compare
from livetalk_kernels.bench.roofline import Roofline
from livetalk_kernels.bench.score import Score, Standing, is_ours, standing
from livetalk_kernels.registry import backend_names, load_op, op_names
from livetalk_kernels.spec import Cost

CASE = next(
    case
    for case in load_op("add_norm").cases(torch.device("cpu"), torch.float32)
    if case.name == "one"
)


def test_the_end_says_where_auto_does_not_pick_the_fastest() -> None:
    def result(auto: str, **seconds: float) -> Result:
        rows = [
            Row(backend=name, state="timed", note="", auto=name == auto, approximate=name == "fp8")
            for name in seconds
        ]
        return Result(
            case=CASE,
            cost=Cost(flops=1, bytes=1),
            roofline=Roofline(bandwidth=1.0, rate=1.0),
            copies=1,
            clocks=(None, None),
            rows=compare(rows, [{name: [value] for name, value in seconds.items()}]),
        )

    near = result("cpu", eager=4.0, compile=0.5, cpu=1.04, sdpa=1.0, fp8=0.1)
    late = result("cpu", eager=4.0, compile=0.5, cpu=1.5, sdpa=1.0, fp8=0.1)
    unpicked = result("cpu", eager=1.0)
    assert near.faster_than_auto is None and late.faster_than_auto == ("sdpa", 1.5)
    assert auto_verdict([near, unpicked]) == (
        "auto picks the fastest backend, within 5 %, in 1 of 1 case"
    )
    assert auto_verdict([near, late]).endswith(
        "in 1 of 2 cases; not in add_norm one: sdpa 1.50 x faster"
    )
    assert auto_verdict([unpicked]) == ""
    assert late.as_json()["faster_than_auto"] == ("sdpa", 1.5)


def test_the_score_is_ours_against_the_best_rival() -> None:
    samples = {
        "eager": [8.0, 8.0], "sdpa": [4.0, 6.0], "quack": [1.0, 1.0], "cpu": [3.0, 3.0],
        "triton": [2.0, 2.0], "triton_fp8": [0.5, 0.5],
    }  # fmt: skip
    approximate = ("quack", "triton_fp8")
    rows = [
        Row(backend=name, state="timed", note="", approximate=name in approximate)
        for name in samples
    ]
    found = standing(rows, samples, 1.0)
    assert found == Standing(ours="triton", rival="sdpa", vs_rival=2.5, of_floor=0.5)
    assert standing(rows[:2], samples, 1.0) is None  # there is nothing of ours
    worse = replace(found, vs_rival=0.4, of_floor=0.125)
    score = Score.of({"a": found, "b": worse, "c": None})
    assert score is not None and score.cases == 2 and score.without == ("c",)
    assert score.vs_rival == pytest.approx(1.0) and score.of_floor == pytest.approx(0.25)
    assert score.least == (0.4, "b, triton against sdpa")
    assert "1.00 x the best rival, 25 % of the floor" in str(score)
    assert Score.of({"c": None}) is None
    ours = {name for op in op_names() for name in backend_names(op) if is_ours(name)}
    assert ours == {"cpu", "cuda", "cutlass", "triton", "triton_fp8"}  # a library is a rival
