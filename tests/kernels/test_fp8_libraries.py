"""The FP8 linears by other people's kernels: PyTorch's ``scaled_mm`` and quack.

``scaled_mm`` runs on a CPU with scales per row. Its blocks, and quack, are for GPUs: there we test
what we hand over and make of the answer, against stand-ins that have the libraries' signatures
and demand what the libraries do.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from livetalk_kernels import UserError
from livetalk_kernels.backends.reasons import cuda_reason
from livetalk_kernels.dispatch import pick
from livetalk_kernels.ops.fp8_gemm import fp8_gemm, scaled_mm
from livetalk_kernels.ops.fp8_gemm_gelu_quant import fp8_gemm_gelu_quant
from livetalk_kernels.ops.quantize import dequantize, quantize
from livetalk_kernels.registry import load_backend
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import calc_diff, guarded

FP8, BF16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
CPU, GPU = torch.device("cpu"), torch.device("cuda")
EPILOGUES = "livetalk_kernels.ops.fp8_gemm._quack"
LIBRARIES = ["scaled_mm", "quack"]
BLOCKS = {"block": 128}
SIZES = {"M": 8, "N": 128, "K": 256}

each_name = pytest.mark.parametrize("name", LIBRARIES)
each_op = pytest.mark.parametrize("op", ["fp8_gemm", "fp8_gemm_gelu_quant"])


def operands(M: int, N: int, K: int, *, block: int | None = None) -> tuple[Tensor, ...]:
    """Quantised a and b, and their scales, as the ops take them."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(M, K, generator=generator)
    b = torch.randn(N, K, generator=generator) * max(1, K) ** -0.5
    (qa, sa), (qb, sb) = quantize(a, block=block, backend="reference"), quantize(b)
    return qa, qb, sa, sb


def exact(qa: Tensor, qb: Tensor, sa: Tensor, sb: Tensor, bias: Tensor | None) -> Tensor:
    out = dequantize(qa, sa, torch.float64) @ dequantize(qb, sb, torch.float64).T
    return out if bias is None else out + bias.double()


def normal(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4)).to(dtype)


def is_aligned(*tensors: Tensor) -> bool:
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def cublas(
    mat_a: Any,
    mat_b: Any,
    scale_a: Any,
    scale_recipe_a: Any,
    scale_b: Any,
    scale_recipe_b: Any,
    swizzle_a: Any = None,
    swizzle_b: Any = None,
    bias: Any = None,
    output_dtype: Any = BF16,
    contraction_dim: Any = (),
    use_fast_accum: Any = False,
) -> Tensor:
    """``scaled_mm`` as it is on a Hopper, with the demands of PyTorch's source and of cuBLAS."""
    (M, K), N = mat_a.shape, mat_b.shape[1]
    assert M and K and N and not (K % 16 or N % 16)
    assert mat_a.dtype == mat_b.dtype == FP8 and scale_a.dtype == scale_b.dtype == FP32
    assert mat_a.is_contiguous() and mat_b.T.is_contiguous()
    assert is_aligned(mat_a, mat_b, scale_a, scale_b)
    assert not (swizzle_a or swizzle_b or contraction_dim or use_fast_accum)
    assert scale_recipe_a == scale_recipe_b
    if scale_recipe_a == functional.ScalingType.RowWise:
        assert scale_a.shape == (M, 1) and scale_b.shape == (1, N)
        assert scale_a.is_contiguous() and scale_b.is_contiguous()
        scale_b = scale_b.T
    else:
        assert scale_recipe_a == functional.ScalingType.BlockWise1x128
        assert not (M % 8 or K % 128)
        assert scale_a.shape == (M, K // 128) and scale_a.stride() == (1, M)
        assert scale_b.shape == (N, K // 128) and scale_b.stride() == (1, N)
    if bias is not None:
        assert output_dtype in {BF16, torch.float16} and bias.dtype == output_dtype
        assert bias.shape == (N,) and is_aligned(bias)
    return exact(mat_a, mat_b.T, scale_a, scale_b, bias).to(output_dtype)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """``scaled_mm`` as on a Hopper, on tensors of the CPU."""
    monkeypatch.setattr(functional, "scaled_mm", cublas)
    monkeypatch.setattr(scaled_mm, "kernels_on", lambda device: "cublas")
    return monkeypatch


def torch_rowwise(
    mat_a: Any,
    mat_b: Any,
    scale_a: Any,
    recipe_a: Any,
    scale_b: Any,
    *rest: Any,
    bias: Any = None,
    output_dtype: Any = BF16,
) -> Tensor:
    """The same as it is on Ada and Blackwell: torch's own kernel has rows and bf16 only."""
    assert recipe_a == functional.ScalingType.RowWise and output_dtype == BF16
    assert bias is None or bias.dtype == BF16
    return cublas(
        mat_a, mat_b, scale_a, recipe_a, scale_b, *rest, bias=bias, output_dtype=output_dtype
    )


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """``scaled_mm`` as on an Ada, on tensors of the CPU."""
    monkeypatch.setattr(functional, "scaled_mm", torch_rowwise)
    monkeypatch.setattr(scaled_mm, "kernels_on", lambda device: "rows")
    return monkeypatch


class EpiMod:
    """What quack's ``gemm_epilogue`` makes of a function, with the call's signature of 0.6.5."""

    def __init__(self, fn: Callable[..., dict[str, Tensor]], ops: dict[str, Any]) -> None:
        assert list(inspect.signature(fn).parameters) == ["acc", *ops]
        assert all(op.name == name for name, op in ops.items())
        self.fn, self.ops = fn, ops

    def __call__(
        self,
        A: Tensor,
        B: Tensor,
        C: Tensor | None = None,
        *,
        out: dict[str, Tensor] | None = None,
        out_dtype: torch.dtype | None = None,
        store_d: bool = True,
        config: Any = None,
        tuned: bool = True,
        **vectors: Tensor,
    ) -> dict[str, Tensor]:
        (M, K), N = A.shape, B.shape[1]
        assert A.dtype == B.dtype == FP8 and out_dtype is not None
        assert M and K and N and not (K % 16 or N * out_dtype.itemsize % 16)
        assert A.is_contiguous() and B.T.is_contiguous() and is_aligned(A, B)
        assert C is None and out is None and store_d and vectors.keys() == self.ops.keys()
        for name, vector in vectors.items():
            assert vector.shape == ((M,) if self.ops[name].dim == 0 else (N,))
            assert vector.stride() == (1,) and is_aligned(vector)
        values = {
            name: vector.float().unsqueeze(1 - self.ops[name].dim)
            for name, vector in vectors.items()
        }
        return {"D": self.fn(A.float() @ B.float(), **values)["D"].to(out_dtype)}


class ColVecLoad:
    dim = 0

    def __init__(self, name: str) -> None:
        self.name = name


class RowVecLoad(ColVecLoad):
    dim = 1


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Quack is installed, and takes tensors of the CPU."""
    sys.modules.pop(EPILOGUES, None)
    stand_in(monkeypatch, "quack")
    stand_in(
        monkeypatch,
        "quack.activation",
        gelu_tanh_approx=lambda x: functional.gelu(x, approximate="tanh"),
    )
    stand_in(monkeypatch, "quack.epilogue", gemm_epilogue=lambda ops: lambda fn: EpiMod(fn, ops))
    stand_in(monkeypatch, "quack.epilogue.ops", ColVecLoad=ColVecLoad, RowVecLoad=RowVecLoad)
    yield monkeypatch
    sys.modules.pop(EPILOGUES, None)


@pytest.fixture(params=["scaled_mm on a CPU", "scaled_mm", "quack"])
def library(request: pytest.FixtureRequest, found: pytest.MonkeyPatch) -> str:
    """A backend's name; the first is the real thing, the others call stand-ins."""
    if request.param == "scaled_mm":
        request.getfixturevalue("hopper")
    return str(request.param).removesuffix(" on a CPU")


def run(op: str, library: str, *arguments: Any, **keywords: Any) -> Any:
    return load_backend(op, library).run(*arguments, **keywords)


def test_stand_in_has_the_signature_of_scaled_mm() -> None:
    names = list(inspect.signature(cublas).parameters)
    assert names == list(inspect.signature(functional.scaled_mm).parameters)


@pytest.mark.parametrize("bias", [None, FP32, BF16])
@pytest.mark.parametrize("out_dtype", [FP32, BF16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 32, 64), (1, 16, 16), (5, 37, 200), (13, 1, 1)])
def test_linear(
    library: str,
    shape: tuple[int, int, int],
    out_dtype: torch.dtype,
    bias: torch.dtype | None,
) -> None:
    arguments = operands(*shape)
    vector = None if bias is None else normal(shape[1], dtype=bias)
    out = run("fp8_gemm", library, *arguments, vector, out_dtype=out_dtype)
    truth = exact(*arguments, vector)
    assert out.dtype == out_dtype and out.shape == shape[:2] and out.is_contiguous()
    assert calc_diff(out, truth) < 2e-5
    # It is rounded once: half an ulp, and what the order of an fp32 sum makes of it.
    step = torch.finfo(out_dtype).eps
    assert ((out.double() - truth).abs() <= step * truth.abs() * 0.51 + 1e-5).all()


@pytest.mark.parametrize("bias", [None, FP32, BF16])
@pytest.mark.parametrize("M", [1, 8, 13, 16])
@pytest.mark.parametrize(("N", "K"), [(32, 256), (37, 384)])
def test_scaled_mm_in_blocks(
    M: int, N: int, K: int, bias: torch.dtype | None, hopper: pytest.MonkeyPatch
) -> None:
    """Scales go to cuBLAS with a block's rows as neighbours; odd rows and columns are padded."""
    arguments = operands(M, N, K, block=128)
    vector = None if bias is None else normal(N, dtype=bias)
    for out_dtype in (FP32, BF16):
        out = run("fp8_gemm", "scaled_mm", *arguments, vector, out_dtype=out_dtype)
        assert out.dtype == out_dtype and out.shape == (M, N) and out.is_contiguous()
        truth = exact(*arguments, vector)
        assert calc_diff(out, truth) < 2e-5
        if out_dtype == BF16 and bias != FP32:  # then the kernel adds the bias, and rounds once
            assert torch.equal(out, truth.to(BF16))


@pytest.mark.parametrize("gap", [0, 1, 7])
def test_odd_addresses(library: str, gap: int) -> None:
    arguments = *operands(9, 48, 64), normal(48)
    expected = run("fp8_gemm", library, *arguments)
    shifted = [
        torch.empty(x.numel() + gap, dtype=x.dtype)[gap:].view(x.shape).copy_(x) for x in arguments
    ]
    assert torch.equal(run("fp8_gemm", library, *shifted), expected)
    shifted[2] = shifted[2].repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(run("fp8_gemm", library, *shifted), expected)


def test_m_major_blocks_are_not_copied(hopper: pytest.MonkeyPatch) -> None:
    """CuBLAS takes them as they are, in multiples of 8 rows; by rows each call copies them."""
    given, seen = operands(16, 256, 64), list[int]()
    _, qb, _, sb = operands(1, 32, 256)
    hidden = [
        run("fp8_gemm_gelu_quant", "scaled_mm", *given, None, m_major=m_major)
        for m_major in (False, True)
    ]

    def spy(*operands: Any, **more: Any) -> Tensor:
        seen.append(operands[2].data_ptr())
        return cublas(*operands, **more)

    hopper.setattr(functional, "scaled_mm", spy)
    outs = [run("fp8_gemm", "scaled_mm", q, qb, scale, sb, None) for q, scale in hidden]
    assert torch.equal(*outs)
    rows, columns = (scale.data_ptr() for _, scale in hidden)
    assert seen[0] != rows and seen[1] == columns


@each_name
def test_the_models_operands_are_not_copied(name: str, found: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    found.setattr(functional, "scaled_mm", lambda a, b, *rest, **_: spy(a, b, rest[0], rest[2]))
    found.setattr(
        EpiMod, "__call__", lambda _, a, b, **more: spy(a, b, more["scale_a"], more["scale_b"])
    )

    def spy(*tensors: Tensor) -> Any:
        seen.extend(tensors)
        out = torch.zeros(7, 32)
        return {"D": out} if name == "quack" else out

    arguments = operands(7, 32, 64)
    run("fp8_gemm", name, *arguments, None)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in arguments]


@each_name
@pytest.mark.parametrize("shape", [(0, 128, 64), (4, 0, 64), (4, 128, 0), (0, 0, 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_nothing_to_multiply_does_not_reach_the_library(
    name: str, shape: tuple[int, int, int], bias: bool, found: pytest.MonkeyPatch
) -> None:
    M, N, K = shape
    found.setattr(functional, "scaled_mm", None)
    found.setattr(EpiMod, "__call__", None)
    vector = normal(N) if bias else None
    arguments = torch.empty(M, K).to(FP8), torch.empty(N, K).to(FP8), torch.ones(M, 1)
    arguments = *arguments, torch.ones(N, 1), vector
    expected = torch.zeros(M, N) if vector is None else vector.expand(M, N)
    out = run("fp8_gemm", name, *arguments)
    assert out.dtype == BF16 and torch.equal(out, expected.bfloat16())
    q, scale = run("fp8_gemm_gelu_quant", name, *arguments)
    assert q.shape == (M, N) and scale.shape == (M, N // 128)
    if N:
        gelu = functional.gelu(expected, approximate="tanh")
        assert calc_diff(dequantize(q, scale, torch.float64), gelu) < 1e-3


def test_gelu_and_quantisation(library: str) -> None:
    arguments = operands(11, 256, 200)
    bias = normal(256)
    q, scale = run("fp8_gemm_gelu_quant", library, *arguments, bias)
    truth = functional.gelu(exact(*arguments, bias), approximate="tanh")
    assert q.dtype == FP8 and q.is_contiguous() and scale.shape == (11, 2)
    assert calc_diff(dequantize(q, scale, torch.float64), truth) < 1e-3
    peaks = truth.unflatten(-1, (2, 128)).abs().amax(-1)
    assert torch.allclose(scale.double() * 448, peaks, rtol=1e-4)  # fp32 until here, not bf16
    qa, qb, sa, sb = arguments
    with pytest.raises(UserError, match="do not divide a row of 200; pad it to 256"):
        run("fp8_gemm_gelu_quant", library, qa, qb[:200], sa, sb[:200], None)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_stay_in_their_row_and_column(library: str, bad: float) -> None:
    """Zeros that operands are padded with touch no other value, not even NaN of it."""
    arguments = *operands(5, 37, 20), normal(37)
    qa, _, _, sb, _ = arguments
    qa[1, 19], sb[30] = torch.nan, bad
    with_guards = [guarded(x) for x in arguments]
    out = run("fp8_gemm", library, *with_guards)
    wrong = torch.zeros(5, 37, dtype=torch.bool)
    wrong[1], wrong[:, 30] = True, True
    assert torch.equal(~out.isfinite(), wrong)


def test_a_feed_forward_of_scaled_mm(hopper: pytest.MonkeyPatch) -> None:
    """Its hidden activations stay in blocks."""
    qa, qb, sa, sb = operands(6, 256, 64)
    back = operands(1, 48, 256)
    hidden = run("fp8_gemm_gelu_quant", "scaled_mm", qa, qb, sa, sb, None)
    out = run("fp8_gemm", "scaled_mm", hidden[0], back[1], hidden[1], back[3], None)
    assert calc_diff(out, exact(hidden[0], back[1], hidden[1], back[3], None)) < 2e-5


@pytest.mark.parametrize("bias", [None, FP32, BF16])
def test_scaled_mm_off_hopper(bias: torch.dtype | None, ada: pytest.MonkeyPatch) -> None:
    """Rows go to torch's kernel, which rounds to bf16; blocks are multiplied in bf16."""
    vector = None if bias is None else normal(37, dtype=bias)
    for block in (None, 128):
        arguments = operands(13, 37, 256, block=block)
        truth = exact(*arguments, vector)
        for out_dtype in (BF16, FP32):
            out = run("fp8_gemm", "scaled_mm", *arguments, vector, out_dtype=out_dtype)
            assert out.dtype == out_dtype and out.shape == (13, 37) and out.is_contiguous()
            assert calc_diff(out, truth) < 2e-5
    arguments = operands(6, 256, 256, block=128)
    q, scale = run("fp8_gemm_gelu_quant", "scaled_mm", *arguments, None)
    truth = functional.gelu(exact(*arguments, None), approximate="tanh")
    assert calc_diff(dequantize(q, scale, torch.float64), truth) < 1e-3


@each_op
@each_name
def test_blocks_that_it_does_not_take(op: str, name: str, found: pytest.MonkeyPatch) -> None:
    """Refused in words: neither run with the wrong scale, nor left to another backend unsaid."""
    with pytest.raises(UserError, match=r"takes one scale per row, not 2 blocks; choose --backend"):
        run(op, name, *operands(4, 128, 256, block=128), None)
    with pytest.raises(UserError, match="do not divide a row of 200"):
        run(op, name, *operands(4, 128, 200)[:2], torch.ones(4, 2), torch.ones(128, 1), None)


def reason(
    op: str,
    library: str,
    device: torch.device = GPU,
    dtype: torch.dtype = BF16,
    options: dict[str, Any] | None = None,
    **dims: int,
) -> str | None:
    case = Case(op=op, device=device, dtype=dtype, dims=dims, options=options or {})
    return load_backend(op, library).supports(case)


@pytest.fixture
def gpu(found: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says it has a Hopper and CUDA 12.9."""
    found.setattr(torch.cuda, "is_available", lambda: True)
    found.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found.setattr(torch.version, "cuda", "12.9")
    return found


@each_op
def test_reasons_of_scaled_mm(op: str, gpu: pytest.MonkeyPatch) -> None:
    for cuda in ("12.9", "13.0", "13.2"):
        gpu.setattr(torch.version, "cuda", cuda)
        assert reason(op, "scaled_mm") is None  # when a model is built, sizes are not known
        assert reason(op, "scaled_mm", options=BLOCKS, **SIZES) is None
    for cuda in ("12.8", "11.8", None):
        gpu.setattr(torch.version, "cuda", cuda)
        text = f"needs cuda 12.9 or newer, not {cuda}" if cuda else "this torch is not built for"
        assert str(reason(op, "scaled_mm", **SIZES)).startswith(text)
    for capability in ((8, 9), (10, 0), (12, 0)):  # torch's own kernel
        gpu.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert reason(op, "scaled_mm") is None
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert "needs compute capability 8.9" in str(reason(op, "scaled_mm"))
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert reason(op, "scaled_mm") == cuda_reason()
    assert reason(op, "scaled_mm", dtype=torch.float64) is not None
    assert reason(op, "scaled_mm", device=torch.device("meta")) is not None


def test_scaled_mm_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = "takes scales per row only on a CPU, not per 1x128 block"
    assert reason("fp8_gemm", "scaled_mm", CPU, **SIZES) is None
    assert reason("fp8_gemm", "scaled_mm", CPU, options=BLOCKS, **SIZES) == blocks
    # A model's feed-forward hands blocks to this op; it hands none to the other one.
    assert reason("fp8_gemm", "scaled_mm", CPU) == blocks
    assert reason("fp8_gemm_gelu_quant", "scaled_mm", CPU) is None
    assert reason("fp8_gemm_gelu_quant", "scaled_mm", CPU, options=BLOCKS) == blocks
    with pytest.raises(UserError, match="fp8_gemm=scaled_mm: cannot run: takes scales per row"):
        pick(Case(op="fp8_gemm", device=CPU, dtype=FP32), "scaled_mm", named=True)
    monkeypatch.setattr(scaled_mm, "OPERATOR", "aten::_scaled_grouped_mm")
    text = reason("fp8_gemm", "scaled_mm", CPU, **SIZES)
    assert text is not None and text.endswith("has no scaled_mm for CPUs; pip install -U torch")


@each_op
def test_reasons_of_quack(op: str, gpu: pytest.MonkeyPatch) -> None:
    assert reason(op, "quack", **SIZES) is None
    blocks = "takes scales per row only, not per 1x128 block"
    assert reason(op, "quack", options=BLOCKS, **SIZES) == blocks
    assert reason(op, "quack") == (blocks if op == "fp8_gemm" else None)
    assert reason(op, "quack", CPU, **SIZES) == "runs on cuda, not on cpu"
    assert "not float64" in str(reason(op, "quack", dtype=torch.float64, **SIZES))
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    text = reason(op, "quack", **SIZES)
    assert text == "needs compute capability 9.0 or newer, not 8.9"
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert reason(op, "quack", **SIZES) == cuda_reason()


@pytest.mark.parametrize("missing", ["quack", "quack.epilogue"])
def test_a_missing_or_old_quack_says_how_to_install_it(
    missing: str, gpu: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.startswith(missing)]:
        gpu.delitem(sys.modules, module)
    gpu.setitem(sys.modules, missing, None)
    text = reason("fp8_gemm", "quack", **SIZES)
    assert text is not None and text.endswith("; pip install 'livetalk[quack]'")
    assert text.startswith("quack cannot be imported (") and "\n" not in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bias_dtype", [FP32, BF16])
@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("shape", [(1512, 5120, 13824), (1510, 15360, 5120), (1001, 1000, 640)])
@each_name
def test_at_the_models_shapes(
    name: str, shape: tuple[int, int, int], block: int | None, bias_dtype: torch.dtype
) -> None:
    M, N, K = shape
    options = {} if block is None else {"block": block}
    case = Case(op="fp8_gemm", device=GPU, dtype=BF16, dims=dict(M=M, N=N, K=K), options=options)
    if (text := load_backend("fp8_gemm", name).supports(case)) is not None:
        pytest.skip(text)
    arguments = [x.cuda() for x in operands(M, N, K, block=block)]
    bias = normal(N, dtype=bias_dtype).cuda()
    out = fp8_gemm(*arguments, bias, backend=name)
    assert calc_diff(out, exact(*arguments, bias)) < 2e-5
    if block is None and N % 128 == 0:
        q, scale = fp8_gemm_gelu_quant(*arguments, bias, backend=name)
        truth = functional.gelu(exact(*arguments, bias), approximate="tanh")
        assert calc_diff(dequantize(q, scale, torch.float64), truth) < 1e-3
