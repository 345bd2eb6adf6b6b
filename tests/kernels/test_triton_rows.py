"""The Triton kernels that work on rows, where the contract's cases do not reach them."""

import importlib
import math

import pytest
import torch

from livetalk_kernels.backends.triton_launch import supports
from livetalk_kernels.ops import _rows
from livetalk_kernels.ops.rms_norm import rms_norm
from livetalk_kernels.ops.rms_norm_silu import rms_norm_silu
from livetalk_kernels.precision import FP8
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.cases import runnable_cases
from livetalk_kernels.testing.numerics import check_backend

ROW_OPS = {
    "add_norm", "add_norm_quant", "add_residual", "merge_lse", "quantize", "rms_norm",
    "rms_norm_rope", "rms_norm_silu",
}  # fmt: skip
CPU = torch.device("cpu")
REASON = supports(Case(op="rms_norm", device=CPU, dtype=torch.float32))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case))
        for case, backend in runnable_cases([CPU])
        if backend == "triton" and case.op in ROW_OPS and case.dtype == torch.float32
        if math.prod(case.dims.values()) < 1e5  # those have several programs as they are
    ],
)
def test_many_programs_are_as_exact(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter gets one large program where a GPU gets many, the last not full."""
    monkeypatch.setattr(_rows, "INTERPRETED_ELEMENTS", 256)
    ok, reason = check_backend(case, "triton")
    assert ok, reason


@pytest.mark.parametrize(
    ("rows", "width", "itemsize", "warps", "count"),
    [
        (1512, 5120, 2, 4, 1),  # 4096 + 1024: one access of 128 threads in the shorter block
        (1512, 5120, 4, 8, 1),
        (1512, 1536, 2, 2, 1),
        (1512, 4100, 2, 8, 1),  # a rest of 4 does not decide
        (1 << 20, 128, 2, 4, 32),  # blocks of FP8
        (100, 64, 2, 4, 4),
    ],
)
def test_rows_are_dealt_so_that_threads_move_16_bytes(
    rows: int, width: int, itemsize: int, warps: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "interpreted", lambda: False)
    plan = _rows.plan_rows(rows, width, itemsize)
    assert (plan.warps, plan.constants["ROWS"]) == (warps, count)
    assert plan.programs == -(-rows // count)


@pytest.mark.parametrize(
    ("rows", "width", "pair", "programs"),
    [
        (1513, 5120, True, 757),
        (1023, 5120, False, 1023),  # too few to keep the GPU busy by two
        (1 << 20, 64, False, (1 << 20) // 64),  # several short rows already
    ],
)
def test_two_rows_share_the_loads_of_vectors(
    rows: int, width: int, pair: bool, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rows, "interpreted", lambda: False)
    plan = _rows.pair_rows(_rows.plan_rows(rows, width, 2), rows)
    assert (plan.constants["PAIR"], plan.programs) == (pair, programs)


@pytest.mark.parametrize("op", ["add_norm", "add_norm_quant"])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_pair_that_is_not_full(op: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows a program, as on a GPU; the last has one."""
    monkeypatch.setattr(_rows, "INTERPRETED_ELEMENTS", 256)
    case = Case(op=op, device=CPU, dtype=torch.float32, dims={"B": 1, "L": rows, "D": 100})
    ok, reason = check_backend(case, "triton")
    assert ok, reason


def test_fp8_rounds_to_nearest_even_on_every_step() -> None:
    """All values of e4m3, the middles between them and their neighbours, as torch rounds them."""
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles.nextafter(numbers[1:]), middles.nextafter(-middles)])
    x = torch.cat([x, -x])
    # Their peak is 448, so the scale is 1.
    q, scale = importlib.import_module("livetalk_kernels.ops.quantize.triton").run(x[None])
    assert scale.item() == 1
    assert torch.equal(q.float(), x[None].to(FP8).float())


def test_rows_without_a_common_stride() -> None:
    x = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    weight = torch.rand(20)
    expected = rms_norm(x.contiguous(), weight, backend="triton")
    assert torch.equal(rms_norm(x, weight, backend="triton"), expected)


def test_a_pixel_with_nan_is_nan_in_all_channels() -> None:
    x = torch.ones(1, 8, 1, 2, 2)
    x[0, 3, 0, 1, 0] = torch.nan
    out = rms_norm_silu(x, torch.ones(8), backend="triton")
    assert out[..., 1, 0].isnan().all() and int(out.isnan().sum()) == 8
