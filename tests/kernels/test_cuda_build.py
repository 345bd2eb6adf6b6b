"""The CUDA bindings as the build makes them, loaded without a GPU: all operators, no wrong call.

No kernel runs here. Where torch is built for the CPU, the stub that `setup.py` links against stands
in for ``libtorch_cuda.so``. The bindings get tensors on the CPU, past the dispatcher: a right call
then meets only the last check, which asks for a GPU, and a wrong one meets its own.
"""

import ctypes
import importlib
import inspect
import multiprocessing
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from livetalk_kernels.backends import cpu, cuda
from livetalk_kernels.backends.operators import register_fake
from livetalk_kernels.registry import OPS_PACKAGE, load_backend
from livetalk_kernels.spec import as_tuple

ROOT = Path(__file__).resolve().parent.parent.parent
FP8 = torch.float8_e4m3fn
HALF = torch.bfloat16
MEND = "build it again"
PLAIN = ("add_norm_cuda", "rms_norm_cuda", "rms_norm_rope_cuda")
CUTLASS = ("fp8_gemm_cutlass", "fp8_gemm_gelu_quant_cutlass")


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape).to(dtype)


def shifted(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A contiguous vector that does not start at a multiple of 16 bytes."""
    return zeros(count + 1, dtype=dtype)[1:]


def wide(elements: int) -> Tensor:
    """A row of that many elements, in no memory to speak of."""
    return torch.zeros(1, 1).expand(1, elements)


def meta(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")


Arguments = Callable[[], dict[str, Any]]

RIGHT: dict[str, Arguments] = {
    "add_norm_cuda": lambda: {
        "x": zeros(2, 3, 16), "y": zeros(2, 3, 16), "gate": zeros(16, dtype=HALF),
        "weight": zeros(16), "bias": zeros(16),
    },
    "rms_norm_cuda": lambda: {"x": zeros(2, 3, 24)[..., :16], "weight": zeros(16)},
    "rms_norm_rope_cuda": lambda: {
        "q_BLD": zeros(2, 3, 48)[..., :16], "k_BLD": zeros(2, 3, 48)[..., 16:32],
        "weight_q_D": zeros(16), "weight_k_D": zeros(16), "cos_Sc": zeros(5, 4),
        "sin_Sc": zeros(5, 4), "num_heads": 2, "row_offset": 2, "layout": "head",
    },
    "rms_norm_silu_cuda_rows": lambda: {
        "x": zeros(3, 16), "gamma": zeros(16, dtype=HALF), "bias": zeros(16),
    },
    "fp8_gemm_cutlass": lambda: {
        "a_MK": zeros(3, 256, dtype=FP8), "b_NK": zeros(128, 256, dtype=FP8),
        "scale_a": zeros(2, 3).T, "scale_b": zeros(128, 1), "bias_N": zeros(128, dtype=HALF),
    },
}  # fmt: skip
RIGHT["fp8_gemm_gelu_quant_cutlass"] = lambda: RIGHT["fp8_gemm_cutlass"]() | {"m_major": True}

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("add_norm_cuda", {"y": zeros(2, 3, 8)}, "y differs from the first tensor in shape"),
    ("add_norm_cuda", {"y": zeros(6, 16)}, "y differs from the first tensor in shape"),
    ("add_norm_cuda", {"y": zeros(2, 3, 16, dtype=HALF)}, "y differs .* in shape or dtype"),
    ("add_norm_cuda", {"y": zeros(3, 2, 16).transpose(0, 1)}, "y is not contiguous"),
    ("add_norm_cuda", {"y": shifted(96).view(2, 3, 16)}, "y does not start at a multiple of 16"),
    ("add_norm_cuda", {"x": shifted(96).view(2, 3, 16)}, "x does not start at a multiple of 16"),
    ("add_norm_cuda", {"x": zeros(2, 16, 3).transpose(1, 2)}, "x is not contiguous"),
    ("add_norm_cuda", {"x": zeros(2, 3, 6)}, "rows of 6 channels, not a multiple of 4"),
    ("add_norm_cuda", {"x": zeros(2, 3, 4, dtype=HALF)}, "rows of 4 channels, not a multiple of 8"),
    ("add_norm_cuda", {"x": zeros(2, 3, 16, dtype=torch.float16)}, "needs float32 or bfloat16"),
    ("add_norm_cuda", {"x": torch.tensor(0.0)}, "needs rows, not a scalar"),
    ("add_norm_cuda", {"x": wide(2**31)}, "more than 2\\^31 - 1 rows, or channels"),
    ("add_norm_cuda", {"gate": zeros(8)}, "gate has 8 elements, not 16"),
    ("add_norm_cuda", {"weight": zeros(17)}, "weight has 17 elements, not 16"),
    ("add_norm_cuda", {"bias": zeros(0)}, "bias has 0 elements, not 16"),
    ("add_norm_cuda", {"gate": shifted(16, HALF)}, "gate does not start at a multiple of 16"),
    ("add_norm_cuda", {"weight": shifted(16)}, "weight does not start at a multiple of 16"),
    ("add_norm_cuda", {"bias": zeros(32)[::2]}, "bias is not contiguous"),
    ("add_norm_cuda", {"bias": zeros(16).double()}, "bias is neither float32 nor bfloat16"),
    ("add_norm_cuda", {"weight": meta(16)}, "weight is on another device than the first tensor"),
    ("add_norm_cuda", {"y": meta(2, 3, 16)}, "y is on another device than the first tensor"),
    ("rms_norm_cuda", {"weight": zeros(15)}, "weight has 15 elements, not 16"),
    ("rms_norm_cuda", {"x": zeros(2, 3, 18)[..., :16]}, "rows of x are not a multiple of 16 bytes"),
    ("rms_norm_cuda", {"x": zeros(2, 3, 24)[..., 1:17]}, "x does not start at a multiple of 16"),
    ("rms_norm_cuda", {"x": zeros(2, 3, 32)[..., ::2]}, "channels of x are strided"),
    ("rms_norm_cuda", {"x": zeros(2, 66)[:, :64].view(2, 4, 16)}, "rows of x are not a multiple"),
    ("rms_norm_cuda", {"x": torch.zeros(1, 1, 4).expand(2**31, 1, 4)}, "more than 2\\^31 - 1 rows"),
    ("rms_norm_rope_cuda", {"q_BLD": zeros(6, 16)}, "q is \\[B, L, D\\]"),
    ("rms_norm_rope_cuda", {"k_BLD": zeros(2, 2, 16)}, "k differs .* in shape or dtype"),
    (
        "rms_norm_rope_cuda",
        {"k_BLD": zeros(2, 3, 16, dtype=HALF)},
        "k differs .* in shape or dtype",
    ),
    ("rms_norm_rope_cuda", {"k_BLD": zeros(2, 3, 18)[..., :16]}, "rows of k are not a multiple"),
    ("rms_norm_rope_cuda", {"num_heads": 0}, "0 heads do not divide 16 channels"),
    ("rms_norm_rope_cuda", {"num_heads": 3}, "3 heads do not divide 16 channels"),
    ("rms_norm_rope_cuda", {"num_heads": 8}, "heads of 2 channels, not a multiple of 4"),
    ("rms_norm_rope_cuda", {"layout": "rows"}, "layout is token or head, not rows"),
    ("rms_norm_rope_cuda", {"weight_q_D": zeros(8)}, "weight_q has 8 elements, not 16"),
    ("rms_norm_rope_cuda", {"weight_k_D": zeros(8)}, "weight_k has 8 elements, not 16"),
    ("rms_norm_rope_cuda", {"row_offset": 3}, "cos ends before the tokens do: 5 rows for 3 from 3"),
    ("rms_norm_rope_cuda", {"row_offset": -1}, "cos ends before the tokens do"),
    ("rms_norm_rope_cuda", {"row_offset": 2**63 - 1}, "cos ends before the tokens do"),
    ("rms_norm_rope_cuda", {"sin_Sc": zeros(4, 4)}, "sin ends before the tokens do: 4 rows"),
    ("rms_norm_rope_cuda", {"sin_Sc": zeros(5, 3)}, "sin is not float32 \\[S, 4\\]"),
    ("rms_norm_rope_cuda", {"cos_Sc": zeros(5, 4, dtype=HALF)}, "cos is not float32 \\[S, 4\\]"),
    ("rms_norm_rope_cuda", {"cos_Sc": zeros(4, 5).T}, "cos is not contiguous"),
    ("rms_norm_rope_cuda", {"cos_Sc": shifted(20).view(5, 4)}, "cos does not start at a multiple"),
    (
        "rms_norm_rope_cuda",
        {"q_BLD": zeros(1, 3, 16).expand(65536, 3, 16)},
        "more than 65535 batch entries",
    ),
    ("rms_norm_silu_cuda_rows", {"x": zeros(2, 3, 16)}, "x is \\[pixels, channels\\]"),
    ("rms_norm_silu_cuda_rows", {"x": zeros(3, 32)[:, ::2]}, "x is not contiguous"),
    ("rms_norm_silu_cuda_rows", {"gamma": zeros(15)}, "gamma has 15 elements, not 16"),
    ("rms_norm_silu_cuda_rows", {"gamma": shifted(16)}, "gamma does not start at a multiple of 16"),
    ("rms_norm_silu_cuda_rows", {"bias": zeros(15)}, "bias has 15 elements, not 16"),
    ("rms_norm_silu_cuda_rows", {"bias": shifted(16)}, "bias does not start at a multiple of 16"),
    ("fp8_gemm_cutlass", {"a_MK": zeros(3, 256)}, "a is not float8_e4m3fn"),
    ("fp8_gemm_cutlass", {"a_MK": zeros(256, dtype=FP8)}, "a is not a matrix"),
    ("fp8_gemm_cutlass", {"a_MK": zeros(256, 3, dtype=FP8).T}, "a is not contiguous"),
    ("fp8_gemm_cutlass", {"a_MK": shifted(768, FP8).view(3, 256)}, "a does not start"),
    ("fp8_gemm_cutlass", {"b_NK": shifted(2**15, FP8).view(128, 256)}, "b does not start"),
    ("fp8_gemm_cutlass", {"b_NK": zeros(128, 128, dtype=FP8)}, "a and b differ in K"),
    ("fp8_gemm_cutlass", {"b_NK": zeros(120, 256, dtype=FP8)}, "K and N in multiples of 16"),
    ("fp8_gemm_cutlass", {"scale_a": zeros(3, 3)}, "scale_a is not float32 \\[M, 1\\] or"),
    ("fp8_gemm_cutlass", {"scale_a": zeros(2, 2)}, "scale_a is not float32 \\[M, 1\\] or"),
    ("fp8_gemm_cutlass", {"scale_a": zeros(3, 2).double()}, "scale_a is not float32"),
    ("fp8_gemm_cutlass", {"scale_b": zeros(127, 1)}, "scale_b is not float32 \\[N, 1\\]"),
    ("fp8_gemm_cutlass", {"scale_b": zeros(128, 2)[:, :1]}, "scale_b is not float32 \\[N, 1\\]"),
    ("fp8_gemm_cutlass", {"bias_N": zeros(127)}, "bias is not float32 or bfloat16 \\[N\\]"),
    ("fp8_gemm_cutlass", {"bias_N": zeros(128).double()}, "bias is not float32 or bfloat16"),
    ("fp8_gemm_cutlass", {"bias_N": meta(128)}, "bias is on another device"),
    ("fp8_gemm_cutlass", {"out_dtype": torch.float32}, "out_dtype is bfloat16"),
    ("fp8_gemm_gelu_quant_cutlass", {"scale_a": zeros(3, 3)}, "scale_a is not float32"),
    (
        "fp8_gemm_gelu_quant_cutlass",
        {"b_NK": zeros(64, 256, dtype=FP8), "scale_b": zeros(64, 1), "bias_N": None},
        "needs N in multiples of 128",
    ),
]


def operators(*files: str) -> set[str]:
    """Names of the operators that sources in csrc/bindings define."""
    text = "".join(file.read_text() for name in files for file in (ROOT / "csrc").rglob(name))
    return set(re.findall(r'"(\w+)\([^"]*', text)) & set(re.findall(r'm\.impl\("(\w+)"', text))


# In a child, so that the library is in no other test's process ----------------------------


def load(library: Path, stub: Path) -> list[str | None]:
    """What `cpu.load_library` says without the stub, if there is one, and with it."""
    answers = []
    if stub.exists():
        answers.append(cpu.load_library(library, MEND))
        ctypes.CDLL(str(stub))
    return [*answers, cpu.load_library(library, MEND)]


def defined(name: str) -> list[str]:
    """The arguments of an operator, which has a kernel for CUDA, or for any device."""
    keys = ("CUDA", "CompositeExplicitAutograd")
    assert any(torch._C._dispatch_has_kernel_for_dispatch_key(f"livetalk::{name}", k) for k in keys)
    schema = getattr(torch.ops.livetalk, name).default._schema
    return [argument.name for argument in schema.arguments]


def call(name: str, changes: dict[str, Any]) -> str:
    """Call a CUDA kernel of ours with tensors on the CPU: what it says against that."""
    kernel = torch.library.get_kernel(f"livetalk::{name}", "CUDA")
    schema = getattr(torch.ops.livetalk, name).default._schema
    given = RIGHT[name]() | changes
    keywords = {
        x.name: given.pop(x.name, x.default_value) for x in schema.arguments if x.kwarg_only
    }
    try:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        kernel.call_boxed(keys, *given.values(), **keywords)
    except RuntimeError as error:
        return str(error)
    return "accepted"


def call_wrong(index: int) -> str:
    name, changes, _ = WRONG[index]
    return call(name, changes)


def traced(name: str) -> tuple[list[Any], list[Any]]:
    """Shapes and dtypes by an operator's fake implementation, and those of the reference."""
    op = name.rpartition("_")[0]
    empty_outputs = importlib.import_module(f"livetalk_kernels.ops.{op}").empty_outputs
    register_fake(name, empty_outputs)
    right = RIGHT[name]()
    given = {
        key: value.to("meta") if isinstance(value, Tensor) else value
        for key, value in right.items()
    }
    fake = as_tuple(getattr(torch.ops.livetalk, name)(**given))
    true = as_tuple(load_backend(op, "reference").run(**right))
    return [(x.shape, x.dtype) for x in fake], [(x.shape, x.dtype) for x in true]


# ------------------------------------------------------------------------------------------


def check(library: Path, stub: Path, names: set[str]) -> None:
    """Everything that a library with these operators has to show without a GPU."""
    dynamic = subprocess.run(
        ["readelf", "--dynamic", str(library)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert {"libtorch_cuda.so", "libtorch_cpu.so", "libc10.so"} <= needed
    assert not [name for name in needed if "cudart" in name or name.startswith("libcuda.")]
    assert "PATH)" not in dynamic  # the stub, and torch, are found by name alone
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        *without, loaded = pool.submit(load, library, stub).result()
        assert loaded is None
        for answer in without:
            expected = f"{library.name} does not load: libtorch_cuda.so: cannot open shared object"
            assert answer is not None and answer.startswith(expected) and answer.endswith(MEND)
        arguments = {name: pool.submit(defined, name).result() for name in names}
        for name in names & {*PLAIN, *CUTLASS}:
            contract = importlib.import_module(f"{OPS_PACKAGE}.{name.rpartition('_')[0]}")
            assert arguments[name] == list(inspect.signature(contract.empty_outputs).parameters)
            fake, true = pool.submit(traced, name).result()
            assert fake == true
        toolkit, driver = pool.submit(versions).result()
        assert toolkit >= 12080 and driver >= 0
        for name in names & set(RIGHT):
            answer = pool.submit(call, name, {}).result()
            assert answer.endswith("needs tensors on a CUDA device"), (name, answer)
        answers = {
            index: pool.submit(call_wrong, index).result()
            for index, (name, _, _) in enumerate(WRONG)
            if name in names
        }
        assert answers
        unexpected = [
            (*WRONG[index], answer)
            for index, answer in answers.items()
            if not re.search(WRONG[index][2], answer)
        ]
        assert not unexpected, "\n".join(map(str, unexpected))


def versions() -> tuple[int, int]:
    return cuda.versions()


@pytest.fixture
def nvcc(build: ModuleType) -> None:
    if build.find_nvcc() is None:
        pytest.skip("there is no nvcc")


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("nvcc")
def test_the_plain_bindings(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 s of one core: what `make cuda` builds, and every call that it must refuse."""
    monkeypatch.setattr(build, "find_cutlass", lambda: None)
    library, work = tmp_path / "_C_cuda.so", tmp_path / "work"
    build.build_cuda(library, work)
    check(library, work / "stub/libtorch_cuda.so", operators("*_cuda.cpp"))


PLACEHOLDER = """#include "cuda/sm90/fp8_gemm.h"
namespace livetalk::cuda {{
const char* {name}(const Fp8Linear&, Gpu, cudaStream_t) {{ return "left out of this test"; }}
}}
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("nvcc")
def test_the_bindings_with_one_kernel_on_cutlass(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with CUTLASS: its smallest object is compiled, the others are left out."""
    assert build.find_cutlass() is not None, "make test-slow installs nvidia-cutlass"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    for name in ("fp8_gemm_128x192", "fp8_gemm_gelu_quant"):
        source = tmp_path / f"csrc/cuda/sm90/{name}.cu"
        assert source.is_file()
        source.write_text(PLACEHOLDER.format(name=name))
    monkeypatch.setattr(build, "CSRC", tmp_path / "csrc")
    library, work = tmp_path / "_C_cuda.so", tmp_path / "work"
    build.build_cuda(library, work)
    check(library, work / "stub/libtorch_cuda.so", operators("*_cuda.cpp", "*_sm90.cpp"))
    symbols = build.symbols([work / "sm90_fp8_gemm_128x128.o"], "--defined-only")
    assert [name for name in symbols if "fp8_gemm_kernelILi128" in name]
