"""FP8 at its edges: saturation, zeros, NaN and Inf, lengths that blocks do not divide."""

import pytest
import torch

from livetalk_kernels import UserError
from livetalk_kernels.ops.add_norm import add_norm
from livetalk_kernels.ops.add_norm_quant import add_norm_quant
from livetalk_kernels.ops.fp8_gemm import fp8_gemm
from livetalk_kernels.ops.fp8_gemm import triton as fp8_triton
from livetalk_kernels.ops.fp8_gemm_gelu_quant import fp8_gemm_gelu_quant
from livetalk_kernels.ops.quantize import dequantize, quantize
from livetalk_kernels.registry import backend_names, load_backend
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import calc_diff

FP8 = torch.float8_e4m3fn


def backends(op: str, dtype: torch.dtype = torch.float32) -> list[str]:
    case = Case(op=op, device=torch.device("cpu"), dtype=dtype)
    return [name for name in backend_names(op) if load_backend(op, name).supports(case) is None]


each_quantize = pytest.mark.parametrize("backend", backends("quantize"))


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (name, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for name in backends("quantize", dtype)
    ],
)
def test_largest_value_becomes_448(backend: str, block: int | None, dtype: torch.dtype) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, scale = quantize(x, block=block, backend=backend)
    assert q.dtype == FP8 and scale.dtype == torch.float32
    assert scale.shape == (64, 1 if block is None else 2)
    peaks = q.float().unflatten(-1, (scale.shape[-1], -1)).abs().amax(-1)
    assert torch.equal(peaks, torch.full_like(peaks, 448.0))
    assert calc_diff(dequantize(q, scale, torch.float64), x) < 1e-3


@each_quantize
def test_never_overflows_by_rounding(backend: str) -> None:
    """A scale that is rounded down puts the largest value above 448, which e4m3 turns to NaN."""
    x = torch.linspace(1e-3, 3e38, 4096).unsqueeze(-1)
    q, scale = quantize(x, backend=backend)
    assert torch.equal(q.float(), torch.full_like(x, 448.0))
    assert torch.allclose(q.float() * scale, x, rtol=1e-6)


@each_quantize
def test_zero_rows_have_scale_one(backend: str) -> None:
    x = torch.zeros(3, 256)
    x[1, 200] = -2.0
    q, scale = quantize(x, backend=backend)
    assert scale[0] == 1 and scale[2] == 1
    assert not q[0].float().any() and not q[2].float().any()
    _, scales = quantize(x, block=128, backend=backend)
    assert scales.tolist()[1] == [1.0, pytest.approx(2 / 448)]


@each_quantize
def test_denormal_rows_stay_finite(backend: str) -> None:
    q, scale = quantize(torch.full((1, 16), 1e-44), backend=backend)
    assert (q.float() * scale).isfinite().all()
    assert scale.item() > 0


@each_quantize
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("block", [None, 128])
def test_nan_and_inf_stay_visible(backend: str, bad: float, block: int | None) -> None:
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1))
    x[1, 5] = bad
    values = dequantize(*quantize(x, block=block, backend=backend), torch.float32)
    assert not values[1, 5].isfinite()
    assert values[0].isfinite().all() and values[2].isfinite().all()
    if block:
        assert values[1, 128:].isfinite().all()


@each_quantize
def test_blocks_must_divide_the_row(backend: str) -> None:
    with pytest.raises(UserError, match="blocks of 128 do not divide a row of 200; pad it to 256"):
        quantize(torch.randn(2, 200), block=128, backend=backend)


@each_quantize
def test_takes_any_leading_dimensions(backend: str) -> None:
    x = torch.randn(2, 3, 5, 256)
    q, scale = quantize(x, block=128, backend=backend)
    assert q.shape == x.shape and scale.shape == (2, 3, 5, 2)
    rows = torch.randn(5, 512)[:, :256]
    for a, b in zip(quantize(rows), quantize(rows.contiguous(), backend=backend), strict=True):
        assert torch.equal(a.float(), b.float())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = (x.contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


@each_quantize
@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("lead", [(5,), (2, 3), (), (0,), (1,)])
def test_m_major_scales_are_the_same_ones_elsewhere(
    backend: str, block: int | None, lead: tuple[int, ...]
) -> None:
    x = torch.randn(*lead, 384, generator=torch.Generator().manual_seed(6))
    rows = quantize(x, block=block, backend=backend)
    q, scale = quantize(x, block=block, m_major=True, backend=backend)
    assert same_bits(q, rows[0]) and same_bits(scale, rows[1])
    assert q.is_contiguous() and rows[1].is_contiguous() and scale.shape == rows[1].shape
    assert scale.movedim(-1, 0).is_contiguous()
    if lead:  # what a linear layer makes of them copies nothing
        assert scale.flatten(0, -2).data_ptr() == scale.data_ptr()


@pytest.mark.parametrize("backend", backends("add_norm_quant"))
def test_add_norm_quant_agrees_with_its_parts(backend: str) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(2, 9, 256, generator=generator) for _ in range(2))
    x[0, 3], y[0, 3] = 0, 0
    gate, weight = (torch.randn(256, generator=generator) for _ in range(2))
    bias = torch.zeros(256)
    x_new, q, scale = add_norm_quant(x, y, gate, weight, bias, backend=backend)
    expected_x, h = add_norm(x, y, gate, weight, bias, backend="reference")
    assert torch.allclose(x_new, expected_x, atol=1e-6)
    assert calc_diff(dequantize(q, scale, torch.float64), h) < 1e-3
    assert scale.shape == (2, 9, 1) and scale[0, 3] == 1
    x[1, 4, 7] = torch.nan
    _, q, scale = add_norm_quant(x, y, gate, weight, bias, backend=backend)
    assert dequantize(q, scale, torch.float32)[1, 4].isnan().all()


def linear_operands(
    M: int, N: int, K: int, *, block: int | None = None
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(M, K, generator=generator)
    b = torch.randn(N, K, generator=generator)
    return a, b, *quantize(a, block=block), *quantize(b)


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize(
    ("backend", "out_dtype"),
    [
        (name, dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for name in backends("fp8_gemm", dtype)
    ],
)
def test_fp8_gemm_is_the_product(backend: str, block: int | None, out_dtype: torch.dtype) -> None:
    a, b, qa, sa, qb, sb = linear_operands(7, 32, 256, block=block)
    bias = torch.randn(32)
    out = fp8_gemm(qa, qb, sa, sb, bias, out_dtype=out_dtype, backend=backend)
    assert out.dtype == out_dtype
    columns = [sa[:, k // 128] if block else sa[:, 0] for k in range(256)]
    exact_a = qa.double() * torch.stack(columns, dim=1).double()
    exact = exact_a @ (qb.double() * sb.double()).T + bias.double()
    assert calc_diff(out, exact) < 2e-5
    assert calc_diff(out, a.double() @ b.double().T + bias) < 1e-3


@pytest.mark.parametrize("backend", backends("fp8_gemm"))
def test_fp8_gemm_refuses_blocks_that_do_not_divide(backend: str) -> None:
    qa, qb = torch.zeros(4, 200).to(FP8), torch.zeros(16, 200).to(FP8)
    with pytest.raises(UserError, match="do not divide a row of 200"):
        fp8_gemm(qa, qb, torch.ones(4, 2), torch.ones(16, 1), None, backend=backend)


@pytest.mark.parametrize("backend", backends("fp8_gemm_gelu_quant"))
def test_fp8_gemm_gelu_quant(backend: str) -> None:
    _, _, qa, sa, qb, sb = linear_operands(5, 256, 64)
    q, scale = fp8_gemm_gelu_quant(qa, qb, sa / 8, sb, None, backend=backend)
    assert q.dtype == FP8 and scale.shape == (5, 2)
    x = (qa.double() * sa / 8) @ (qb.double() * sb).T
    gelu = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    assert calc_diff(dequantize(q, scale, torch.float64), gelu) < 1e-3
    with pytest.raises(UserError, match="do not divide a row of 200; pad it to 256"):
        fp8_gemm_gelu_quant(qa, qb[:200], sa, sb[:200], None, backend=backend)
    qa[2, 1] = torch.nan
    q, scale = fp8_gemm_gelu_quant(qa, qb, sa, sb, None, backend=backend)
    assert dequantize(q, scale, torch.float32)[2].isnan().all()
    assert dequantize(q, scale, torch.float32)[1].isfinite().all()


@pytest.mark.parametrize("backend", backends("fp8_gemm_gelu_quant"))
@pytest.mark.parametrize("M", [1, 131])
def test_fp8_gemm_gelu_quant_m_major(backend: str, M: int) -> None:
    _, _, qa, sa, qb, sb = linear_operands(M, 384, 64)
    rows = fp8_gemm_gelu_quant(qa, qb, sa, sb, None, backend=backend)
    q, scale = fp8_gemm_gelu_quant(qa, qb, sa, sb, None, m_major=True, backend=backend)
    assert same_bits(q, rows[0]) and same_bits(scale, rows[1])
    assert scale.T.is_contiguous() and rows[1].is_contiguous()


@pytest.mark.parametrize("backend", backends("fp8_gemm"))
@pytest.mark.parametrize("block", [None, 128])
def test_fp8_gemm_reads_scales_of_any_strides(backend: str, block: int | None) -> None:
    _, _, qa, sa, qb, sb = linear_operands(131, 32, 384, block=block)
    expected = fp8_gemm(qa, qb, sa, sb, None, backend=backend)
    rows, columns = (x.repeat_interleave(3, dim=1)[:, ::3] for x in (sa, sa.T))
    for scales in (sa.T.contiguous().T, rows, columns.T):
        assert torch.equal(fp8_gemm(qa, qb, scales, sb, None, backend=backend), expected)


def test_triton_copies_no_scales() -> None:
    a, b = (torch.empty(n, 256, dtype=FP8, device="meta") for n in (16, 128))
    for scale_a in (torch.empty(16, 2, device="meta"), torch.empty(2, 16, device="meta").T):
        given = (a, b, scale_a, torch.empty(128, 1, device="meta"), None)
        _, arguments = fp8_triton.gemm_arguments(*given, tma_out=True)
        assert arguments["scale_a"] is scale_a
        assert (arguments["scale_row"], arguments["scale_step"]) == scale_a.stride()


@pytest.mark.parametrize("backend", backends("fp8_gemm_gelu_quant"))
def test_one_bad_result_spoils_just_its_block(backend: str) -> None:
    _, _, qa, sa, qb, sb = linear_operands(3, 256, 64)
    bias = torch.zeros(256)
    bias[200] = torch.nan
    q, scale = fp8_gemm_gelu_quant(qa, qb, sa, sb, bias, backend=backend)
    values = dequantize(q, scale, torch.float32)
    assert values[:, 128:].isnan().all() and values[:, :128].isfinite().all()


@pytest.mark.parametrize("backend", backends("fp8_gemm_gelu_quant"))
def test_gelu_of_nothing_has_scale_one(backend: str) -> None:
    _, _, qa, sa, qb, sb = linear_operands(3, 256, 64)
    bias = torch.full((256,), -1000.0)
    bias[:128] = 0
    q, scale = fp8_gemm_gelu_quant(torch.zeros_like(qa), qb, sa, sb, bias, backend=backend)
    assert torch.equal(scale, torch.ones(3, 2)) and not q.float().any()


@pytest.mark.parametrize("backend", backends("fp8_gemm"))
def test_fp8_gemm_takes_operands_at_odd_addresses(backend: str) -> None:
    _, _, qa, sa, qb, sb = linear_operands(7, 32, 64)
    shifted = torch.empty(qa.numel() + 1).to(FP8)[1:].view(qa.shape).copy_(qa)
    bias = torch.randn(32).to(torch.bfloat16)
    out = fp8_gemm(shifted, qb, sa, sb, bias, backend=backend)
    assert torch.equal(out, fp8_gemm(qa, qb, sa, sb, bias, backend=backend))


def test_tiles_of_the_model() -> None:
    """Wide tiles, which read less, unless they leave more of the GPU idle."""
    for rows in (1512, 12096):
        for columns in (5120, 13824, 15360):
            assert fp8_triton.tile_columns(rows, columns, 132) == 256
    assert fp8_triton.tile_columns(128, 132 * 128, 132) == 128
    assert fp8_triton.tile_columns(128, 133 * 128, 132) == 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("backend", ["triton"])
@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("shape", [(1512, 5120, 13824), (1512, 15360, 5120), (1500, 13700, 640)])
def test_fp8_gemm_at_the_models_shapes(
    backend: str, block: int | None, shape: tuple[int, int, int]
) -> None:
    """Many tiles per program, and the tensor cores' short sums over the whole K."""
    M, N, K = shape
    torch.manual_seed(0)
    qa, sa = quantize(torch.randn(M, K, device="cuda"), block=block, backend="reference")
    qb, sb = quantize(torch.randn(N, K, device="cuda"), backend="reference")
    bias = torch.randn(N, device="cuda")
    out = fp8_gemm(qa, qb, sa, sb, bias, backend=backend)
    exact = dequantize(qa, sa, torch.float64) @ dequantize(qb, sb, torch.float64).T + bias
    assert calc_diff(out, exact) < 2e-5
