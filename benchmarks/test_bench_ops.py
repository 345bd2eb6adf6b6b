"""Speed of every op: its cases at the models' sizes, on every backend that runs.

    pytest benchmarks/test_bench_ops.py -k add_norm-

Results are checked before they are timed; inputs are cold. ``livetalk bench`` interleaves the
backends, adds torch.compile and excludes launches on a GPU; here launches count and backends run
one after the other, for pytest-benchmark's comparisons between commits.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from livetalk_kernels.bench.cases import select_cases, too_large, too_long
from livetalk_kernels.bench.roofline import Limits
from livetalk_kernels.bench.runner import is_interpreted, make_inputs
from livetalk_kernels.bench.timers import make_timer
from livetalk_kernels.bench.verify import Judge
from livetalk_kernels.heap import keep_freed_memory
from livetalk_kernels.machine import machine
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Case

ROUNDS, WARM = 20, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _runs() -> Iterator[Any]:
    """Yield a parameter for every case and backend, named OP-CASE-BACKEND."""
    for op in op_names():
        for dtype in load_op(op).dtypes:
            for case in select_cases(op, DEVICE, dtype):
                for name in backend_names(op):
                    if load_backend(op, name).supports(case) is None and not is_interpreted(
                        case, name
                    ):
                        yield pytest.param(case, name, id=f"{op}-{case}-{name}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("case", "backend"), _runs())
def test_speed(case: Case, backend: str, benchmark: Any) -> None:
    """Time one backend on one case."""
    benchmark.group = str(case)
    benchmark.extra_info.update(_measure(case, backend, benchmark))


def _measure(case: Case, backend: str, benchmark: Any) -> dict[str, Any]:
    """Check, then time; return rates and fractions with the times."""
    _, roofline = _limits().of(case)
    reason = too_large(case) or too_long(case, roofline)
    if reason is not None:
        pytest.skip(reason)
    chosen = load_backend(case.op, backend)
    with torch.inference_mode():
        arguments = make_inputs(case)
        ok, errors = Judge(case, arguments, roofline).check(
            chosen.run,
            is_reference=backend == "reference",
            approximate=chosen.approximate,
        )
        assert ok, errors
        timer = make_timer(DEVICE, arguments, hot=False)
        benchmark.pedantic(
            _waiting(chosen.run), setup=timer.prepare, rounds=ROUNDS, warmup_rounds=WARM
        )
    info = {"errors": errors, "machine": machine()}
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.median
        cost = load_op(case.op).cost(case)
        info["gb_per_s"] = cost.bytes / seconds / 1e9
        info["tflop_per_s"] = cost.flops / seconds / 1e12
        info["of_floor"] = roofline.floor(cost) / seconds
    return info


def _waiting(run: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a call to wait for its end on a GPU."""

    def call(*positional: Any, **keywords: Any) -> None:
        run(*positional, **keywords)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    return call


@cache
def _limits() -> Limits:
    keep_freed_memory()
    return Limits(DEVICE)
