"""The CUDA kernels of csrc/cuda, emulated on a CPU: what they compute, without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.backends.cuda import supports_rows
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import Case, as_tuple
from livetalk_kernels.testing.numerics import check_tensor, to_double

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
I64 = ctypes.c_int64
F32 = ctypes.c_float


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the tests need a C++ compiler, as the compiled kernels do"
    library = tmp_path_factory.mktemp("emulation") / "kernels.so"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-ffp-contract=off"]
    command += [f"-I{CSRC}", f"-I{CSRC / 'include'}", "-Wno-unknown-pragmas", "-o", str(library)]
    subprocess.run([*command, str(HERE / "emulation/kernels.cpp")], check=True)
    return ctypes.CDLL(str(library))


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def add_norm(library: ctypes.CDLL, *arguments: Any, eps: float) -> tuple[Tensor, Tensor]:
    x = arguments[0]
    outputs = (torch.full_like(x, torch.nan), torch.full_like(x, torch.nan))
    pointers = [address(tensor) for tensor in (*arguments, *outputs)]
    rows = I64(x.numel() // x.shape[-1])
    half = x.dtype == torch.bfloat16
    assert library.emulate_add_norm(*pointers, rows, x.shape[-1], F32(eps), half)
    return outputs


def rms_norm(library: ctypes.CDLL, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    out = torch.full(x.shape, torch.nan, dtype=x.dtype)
    B, L, D = x.shape
    strides = (I64 * 4)(x.stride(1), 0, x.stride(0), 0)
    half = x.dtype == torch.bfloat16
    assert library.emulate_rms_norm_rope(
        address(x), None, address(weight), None, weight.dtype == torch.bfloat16, address(out), None,
        strides, None, None, B, L, I64(0), D, D, False, F32(eps), half,
    )  # fmt: skip
    return out


def rms_norm_rope(
    library: ctypes.CDLL,
    *arguments: Tensor,
    num_heads: int,
    eps: float,
    row_offset: int,
    layout: str,
) -> tuple[Tensor, Tensor]:
    q, k, weight_q, weight_k, cos, sin = arguments
    B, L, D = q.shape
    d = D // num_heads
    shape = (B, L, num_heads, d) if layout == "token" else (num_heads, B, L, d)
    outputs = tuple(torch.full(shape, torch.nan, dtype=q.dtype) for _ in range(2))
    strides = (I64 * 4)(q.stride(1), k.stride(1), q.stride(0), k.stride(0))
    half = q.dtype == torch.bfloat16
    assert library.emulate_rms_norm_rope(
        address(q), address(k), address(weight_q), address(weight_k), False, address(outputs[0]),
        address(outputs[1]), strides, address(cos), address(sin), B, L, I64(row_offset), D, d,
        layout == "head", F32(eps), half,
    )  # fmt: skip
    return outputs


def rms_norm_silu(
    library: ctypes.CDLL, x: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> Tensor:
    pixels = x.permute(0, 2, 3, 4, 1).contiguous()
    out = torch.full_like(pixels, torch.nan)
    half = x.dtype == torch.bfloat16
    count = I64(pixels.numel() // pixels.shape[-1])
    assert bias is None or bias.dtype == gamma.dtype
    assert library.emulate_rms_norm_silu(
        address(pixels), address(gamma), address(bias), gamma.dtype == torch.bfloat16, address(out),
        count, pixels.shape[-1], half,
    )  # fmt: skip
    return out.permute(0, 4, 1, 2, 3)


EMULATED = {
    "add_norm": (add_norm, "D"),
    "rms_norm": (rms_norm, "D"),
    "rms_norm_rope": (rms_norm_rope, "d"),
    "rms_norm_silu": (rms_norm_silu, "C"),
}


def fits(case: Case, letter: str) -> bool:
    """Whether the backend takes these sizes; other reasons against it are of the machine."""
    reason = supports_rows(Case(op=case.op, device=CUDA, dtype=case.dtype, dims=case.dims), letter)
    return "multiples of" not in (reason or "")


CASES = [
    case
    for op, (_, letter) in EMULATED.items()
    for dtype in (torch.float32, torch.bfloat16)
    for case in load_op(op).cases(CPU, dtype)
    if not case.large and case.name not in {"empty", "blocks"} and fits(case, letter)
] + [
    Case(op="add_norm", device=CPU, dtype=dtype, name="14b_width", dims={"B": 1, "L": 3, "D": 5120})
    for dtype in (torch.float32, torch.bfloat16)
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_as_exact_as_the_contract_says(case: Case, emulated: ctypes.CDLL) -> None:
    arguments, keywords = load_op(case.op).make_inputs(case, Generator().manual_seed(0))
    reference = load_backend(case.op, "reference").run
    double_arguments, double_keywords = to_double((arguments, keywords))
    truths = as_tuple(reference(*double_arguments, **double_keywords))
    baselines = as_tuple(reference(*arguments, **keywords))
    actuals = as_tuple(EMULATED[case.op][0](emulated, *arguments, **keywords))
    for actual, truth, baseline in zip(actuals, truths, baselines, strict=True):
        ok, reason = check_tensor(actual, truth, baseline=baseline)
        assert ok, reason


def test_the_cases_reach_every_kernel() -> None:
    assert {(case.op, case.dtype) for case in CASES} == {
        (op, dtype) for op in EMULATED for dtype in (torch.float32, torch.bfloat16)
    }


@pytest.mark.parametrize("channels", [96, 192, 384, 1024])
def test_every_width_of_the_vae(channels: int, emulated: ctypes.CDLL) -> None:
    dims = {"B": 1, "C": channels, "T": 1, "H": 3, "W": 11}
    options = {"bias": True}
    case = Case(op="rms_norm_silu", device=CPU, dtype=torch.bfloat16, dims=dims, options=options)
    arguments, _ = load_op(case.op).make_inputs(case, Generator().manual_seed(0))
    reference = load_backend(case.op, "reference").run
    truth = reference(*(tensor.double() for tensor in arguments))
    actual = rms_norm_silu(emulated, *arguments)
    ok, reason = check_tensor(actual, truth, baseline=reference(*arguments))
    assert ok, reason
