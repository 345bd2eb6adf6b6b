"""The judge itself: it lets right results pass and no wrong ones."""

import math
from collections.abc import Callable

import pytest
import torch

from livetalk_kernels.ops.add_norm import OP
from livetalk_kernels.registry import load_op
from livetalk_kernels.spec import Bound
from livetalk_kernels.testing.numerics import (
    calc_diff,
    check_backend,
    check_tensor,
    guarded,
    max_error,
    poisoned_memory,
    relative_l2,
    to_double,
    ulp,
)

TRUTH = torch.linspace(-2, 2, 101, dtype=torch.float64)


def test_measures() -> None:
    assert relative_l2(TRUTH * 1.01, TRUTH) == pytest.approx(0.01)
    assert max_error(TRUTH + 0.25, TRUTH) == pytest.approx(0.25)
    assert calc_diff(TRUTH * 1.02, TRUTH) == pytest.approx(0.02**2 / 2, rel=0.05)
    assert calc_diff(-TRUTH, TRUTH) == pytest.approx(2)
    assert calc_diff(TRUTH * 1e200, TRUTH * 1e200) == pytest.approx(0)
    empty, zero = torch.zeros(0), torch.zeros(3)
    assert relative_l2(empty, empty) == max_error(empty, empty) == calc_diff(empty, empty) == 0
    assert relative_l2(zero, zero) == calc_diff(zero, zero) == 0
    assert relative_l2(zero + 1, zero) == math.inf
    assert calc_diff(zero + 1, zero) == 1


def test_ulp() -> None:
    assert ulp(1.0, torch.float32) == 2**-23
    assert ulp(-3.9, torch.bfloat16) == 2**-6
    assert ulp(0.0, torch.float32) > 0


def test_float_rule_is_twice_the_plain_error_and_an_ulp() -> None:
    truth, plain = torch.ones(100, dtype=torch.float64), torch.ones(100) + 1e-4
    assert check_tensor(torch.ones(100) + 2e-4, truth, baseline=plain)[0]
    assert check_tensor(torch.ones(100) + 3e-4, truth, baseline=plain, bound=Bound(factor=4))[0]
    ok, reason = check_tensor(torch.ones(100) + 3e-4, truth, baseline=plain)
    assert not ok and "relative L2 3.00e-04 (bound 2.00e-04)" in reason
    spike = torch.ones(100)
    spike[50] += 1e-3  # a small L2 error: only the largest error sees it
    assert not check_tensor(spike, truth, baseline=plain)[0]


def test_without_a_baseline_one_rounding_passes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert check_tensor(TRUTH.to(dtype), TRUTH)[0]
        assert not check_tensor((TRUTH * 1.02).to(dtype), TRUTH)[0]


def test_wrong_nan_inf_and_shapes_are_found() -> None:
    actual, truth = TRUTH.float(), TRUTH.clone()
    actual[3] = torch.nan
    ok, reason = check_tensor(actual, truth, baseline=actual)
    assert not ok and "at [3]" in reason
    truth[3] = torch.nan
    assert check_tensor(actual, truth, baseline=actual)[0]
    truth[3] = torch.inf
    assert not check_tensor(actual, truth)[0]
    actual[3] = -torch.inf
    assert not check_tensor(actual, truth)[0]
    actual[3] = torch.inf
    assert check_tensor(actual, truth)[0]
    assert "shape" in check_tensor(actual[1:], truth)[1]


def test_bounds_of_a_contract() -> None:
    coarse = (TRUTH * 1.02).float()
    assert check_tensor(coarse, TRUTH, bound=Bound(calc_diff=1e-3))[0]
    assert not check_tensor(coarse, TRUTH, bound=Bound(calc_diff=1e-4))[0]
    off = (TRUTH + 5e-5).float()
    slack = Bound(half_slack=1e-4)
    assert check_tensor(off, TRUTH, baseline=TRUTH.float(), bound=slack, half=True)[0]
    assert not check_tensor(off, TRUTH, baseline=TRUTH.float(), bound=slack)[0]


def test_a_wrong_backend_is_caught(drop_in: Callable[[str, str], None]) -> None:
    drop_in(
        "add_norm/wrong.py",
        "from . import reference\nsupports = reference.supports\n\n\n"
        "def run(x, y, gate, weight, bias, *, eps):\n"
        "    x_new, h = reference.run(x, y, gate, weight, bias, eps=eps)\n"
        "    return x_new, h * 1.001\n",
    )
    case = next(c for c in OP.cases(torch.device("cpu"), torch.float32) if c.name == "odd")
    ok, reason = check_backend(case, "wrong")
    assert not ok and "output 1" in reason and "by wrong" in reason


@pytest.mark.parametrize(
    ("error", "approximate", "right"), [(0.1, True, True), (0.1, False, False), (0.3, True, False)]
)
def test_approximate_backends_have_bounds_of_their_own(
    error: float, approximate: bool, right: bool, drop_in: Callable[[str, str], None]
) -> None:
    drop_in(
        "chunk_attention/rough.py",
        "from . import reference\nsupports = reference.supports\n"
        f"APPROXIMATE = {approximate}\n\n\n"
        "def run(q, k, v, *, scale):\n"
        "    out, lse = reference.run(q, k, v, scale=scale)\n"
        f"    return out * (1 + {error}), lse\n",
    )
    cases = load_op("chunk_attention").cases(torch.device("cpu"), torch.float32)
    ok, reason = check_backend(next(case for case in cases if case.name == "odd"), "rough")
    assert ok == right, reason


def test_guarded_copies_have_nan_in_every_gap() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        view = torch.randn(3, 12).to(dtype)[:, 4:8]
        copy = guarded(view)
        assert copy.stride() == view.stride() and torch.equal(copy.float(), view.float())
        storage = torch.empty(0, dtype=dtype).set_(copy.untyped_storage())
        assert int(storage.float().isfinite().sum()) == 12
    assert guarded(torch.zeros(2, 0)).shape == (2, 0)


def test_poisoned_memory_is_nan_and_ends() -> None:
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        assert torch.empty(10, dtype=torch.bfloat16).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_to_double_keeps_fp8_and_integers() -> None:
    fp8, ints = torch.zeros(1).to(torch.float8_e4m3fn), torch.zeros(1, dtype=torch.int64)
    positional, keywords = to_double(((torch.zeros(1), fp8, ints, None), {"t": torch.bfloat16}))
    assert positional[0].dtype == torch.float64
    assert positional[1] is fp8 and positional[2] is ints and positional[3] is None
    assert keywords == {"t": torch.float64}
