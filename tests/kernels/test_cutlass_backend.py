"""The FP8 linears on CUTLASS, as far as they can be tested without a GPU.

What their epilogue computes runs here, compiled for a CPU; the kernels themselves do not.
"""

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from livetalk_kernels.backends import cuda, cutlass
from livetalk_kernels.backends.cutlass import supports_linear
from livetalk_kernels.backends.reasons import hopper_reason
from livetalk_kernels.errors import UserError
from livetalk_kernels.inspection.cuda_kernels import readable
from livetalk_kernels.ops.fp8_gemm import cutlass as gemm
from livetalk_kernels.ops.fp8_gemm_gelu_quant import cutlass as gemm_gelu_quant
from livetalk_kernels.ops.quantize import reference as quantize
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = torch.device("cuda")
I64 = ctypes.c_int64
OPS = ("fp8_gemm", "fp8_gemm_gelu_quant")
PROCESSORS = 132  # of an H200


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the tests need a C++ compiler, as the compiled kernels do"
    library = tmp_path_factory.mktemp("emulation") / "fp8_linear.so"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-ffp-contract=off"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-o", str(library)]
    subprocess.run([*command, str(HERE / "emulation/fp8_linear.cpp")], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.emulate_scale_index.restype = I64
    return loaded


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extension were loaded, on a Hopper."""
    monkeypatch.setattr(cutlass, "missing", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def case(op: str, device: torch.device = CUDA, dtype: torch.dtype = torch.bfloat16, **dims: int):
    return Case(op=op, device=device, dtype=dtype, dims=dims)


def test_tiles_of_the_model(emulated: ctypes.CDLL) -> None:
    """The waves behind these choices: tile_columns in csrc/cuda/sm90/fp8_gemm.h."""

    def columns(M: int, N: int) -> int:
        return emulated.emulate_tile_columns(I64(M), I64(N), PROCESSORS)

    assert columns(12096, 15360) == 192  # 58 waves, not 88: as 7 to 5 they cost 81 and 88
    assert columns(12096, 5120) == 192  # 20 waves, not 30
    assert columns(1512, 5120) == 128  # 3 waves, not 4: 4.2 and 4
    assert columns(1512, 15360) == 128  # 8 waves, not 11: 11.2 and 11
    assert columns(1, 16) == 128  # one wave each


def test_tiles_are_the_cheaper_ones(emulated: ctypes.CDLL) -> None:
    for M in (1, 128, 129, 700, 1512, 6048, 12096):
        for N in (16, 192, 512, 5120, 13824, 15360):
            waves = {
                width: -(-(-(-M // 256) * 2 * -(-N // width)) // PROCESSORS) for width in (128, 192)
            }
            cost = {128: 5 * waves[128], 192: 7 * waves[192]}
            got = emulated.emulate_tile_columns(I64(M), I64(N), PROCESSORS)
            assert cost[got] == min(cost.values()), (M, N, waves)


@pytest.mark.parametrize("layout", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("M", [1, 5])
def test_scales_are_found_where_they_are(
    M: int, blocks: int, layout: str, emulated: ctypes.CDLL
) -> None:
    """One scale per row has no stride along K; others are where their strides say."""
    K = 384
    scales = {
        "rows": torch.arange(M * blocks).view(M, blocks),
        "columns": torch.arange(M * blocks).view(blocks, M).T,
        "gaps": torch.arange(M * 2 * blocks).view(M, 2 * blocks)[:, ::2],
    }[layout]
    strides = [I64(stride) for stride in scales.stride()]
    for m in range(M):
        for k in range(K):
            expected = int(scales[m, k // 128 if blocks > 1 else 0])
            found = emulated.emulate_scale_index(M, I64(blocks), *strides, I64(m), I64(k))
            assert found == expected
    assert emulated.emulate_scale_index(3, I64(1), I64(2**30), I64(0), I64(0), I64(0)) == -1


def test_gelu_and_scales(emulated: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 128, generator=generator) * torch.logspace(-3, 2, 9)[:, None]
    x[1] = 0.0  # scale 1
    x[2, 5] = torch.nan
    x[3, 5] = torch.inf
    x[4] *= 1e-42  # a scale that would be denormal
    truth = functional.gelu(x.double(), approximate="tanh")
    values, scale = x.clone(), torch.full((9, 1), torch.nan)
    emulated.emulate_gelu_blocks(
        ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(scale.data_ptr()), I64(9)
    )
    finite = truth.isfinite()
    assert torch.equal(finite, values.isfinite())
    plain = functional.gelu(x, approximate="tanh").double()
    error, bound = ((v - truth)[finite].abs().max() for v in (values.double(), plain))
    assert error <= 2 * bound
    _, expected = quantize.run(values, block=128)
    assert torch.equal(expected.isnan(), scale.isnan())
    assert scale[2].isnan() and scale[3].isinf()
    assert torch.equal(scale.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("built")
def test_the_model_s_sizes_are_taken(op: str) -> None:
    """When a model is built its sizes are not known; the benchmark's cases have all of them."""
    supports = load_backend(op, "cutlass").supports
    assert supports(case(op)) is None
    large = [c for c in load_op(op).cases(CUDA, torch.bfloat16) if c.large]
    assert large and all(supports(c) is None for c in large)


@pytest.mark.usefixtures("built")
def test_reasons_against_a_case() -> None:
    assert gemm.supports(case("fp8_gemm", torch.device("cpu"))) == "runs on cuda, not on cpu"
    reason = gemm.supports(case("fp8_gemm", dtype=torch.float32))
    assert reason == "needs bfloat16, not float32"
    assert gemm.supports(case("fp8_gemm", M=0, N=48, K=272)) is None
    assert gemm.supports(case("fp8_gemm", N=48, K=200)) == "needs K in multiples of 16, not 200"
    assert gemm.supports(case("fp8_gemm", N=37, K=16)) == "needs N in multiples of 16, not 37"
    assert gemm.supports(case("fp8_gemm", N=16, K=0)) == "needs K in multiples of 16, not 0"
    reason = gemm_gelu_quant.supports(case("fp8_gemm_gelu_quant", N=192, K=16))
    assert reason == "needs N in multiples of 128, not 192"


def test_reasons_against_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hopper_reason((9, 0)) is None
    for older_or_newer in ((8, 9), (10, 0), (12, 0)):
        text = ".".join(map(str, older_or_newer))
        assert hopper_reason(older_or_newer) == (
            f"needs a Hopper, compute capability 9.0, not {text}"
        )
    monkeypatch.setattr(cuda, "missing", lambda: "not built; do this")
    assert supports_linear(case("fp8_gemm"), 16) == "not built; do this"
    monkeypatch.setattr(cuda, "missing", lambda: None)
    if not hasattr(torch.ops.livetalk, "fp8_gemm_cutlass"):
        reason = supports_linear(case("fp8_gemm"), 16)
        assert reason is not None and "pip install --no-deps nvidia-cutlass" in reason


def test_blocks_that_do_not_divide_are_refused() -> None:
    """Before the operator is looked for, so here too."""
    a, b = (torch.zeros(n, 200).to(torch.float8_e4m3fn) for n in (4, 128))
    with pytest.raises(UserError, match="200"):
        gemm.run(a, b, torch.ones(4, 2), torch.ones(128, 1), None)
    with pytest.raises(UserError, match="200"):
        gemm_gelu_quant.run(a, b, torch.ones(4, 2), torch.ones(128, 1), None)
    with pytest.raises(UserError, match="64"):
        gemm_gelu_quant.run(a, b[:64], torch.ones(4, 1), torch.ones(64, 1), None)


def test_names_of_kernels_on_cutlass() -> None:
    if shutil.which("c++filt") is None:
        pytest.fail("c++filt comes with the compiler that the tests need")
    mangled = {
        "_ZN7cutlass13device_kernelIN8livetalk4cuda15fp8_gemm_kernelILi192EEEEEvNT_6ParamsE": (
            "fp8_gemm_kernel<192>"
        ),
        "_ZN7cutlass13device_kernelIN8livetalk4cuda26fp8_gemm_gelu_quant_kernelEEEvNT_6ParamsE": (
            "fp8_gemm_gelu_quant_kernel"
        ),
    }
    assert readable(mangled) == mangled


@pytest.mark.parametrize("with_cutlass", [True, False])
def test_what_is_compiled(
    with_cutlass: bool,
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Hopper's code alone, few at a time, with CUTLASS; without it no operator lacks its kernel."""
    jobs: list[tuple[str, list[str], int | None]] = []

    def compile_all(batch: dict[Path, list[str]], at_most: int | None = None) -> None:
        jobs.extend((job.name, command, at_most) for job, command in batch.items())

    linked: list[Path] = []
    monkeypatch.setattr(build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(build, "find_cutlass", lambda: tmp_path if with_cutlass else None)
    monkeypatch.setattr(build, "compile_all", compile_all)
    monkeypatch.setattr(build, "link_cuda", lambda t, n, objects, *_: linked.extend(objects))
    build.build_cuda(tmp_path / "_C_cuda.so", tmp_path)
    assert linked == [tmp_path / name for name, _, _ in jobs]
    sm90 = [(command, at_most) for name, command, at_most in jobs if "sm90" in name]
    assert bool(sm90) == with_cutlass
    assert ("nvidia-cutlass" in capsys.readouterr().out) != with_cutlass
    kernels = [(command, at_most) for command, at_most in sm90 if command[-1].endswith(".cu")]
    assert len(kernels) == (3 if with_cutlass else 0)
    for command, at_most in kernels:
        assert at_most == 2
        assert [part for part in command if part.startswith("-gencode")] == [
            "-gencode=arch=compute_90a,code=sm_90a"
        ]
        assert str(tmp_path) in command


def test_cutlass_is_found_where_it_is_installed(build: ModuleType) -> None:
    installed = importlib.util.find_spec("cutlass_library") is not None
    folder = build.find_cutlass()
    assert (folder is not None) == installed
    assert folder is None or (folder / "cute/tensor.hpp").is_file()
