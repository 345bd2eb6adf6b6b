"""The compiled kernels as a whole: without them, per instruction set, per thread count."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels import UserError
from livetalk_kernels.backends import cpu, cuda
from livetalk_kernels.dispatch import pick
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Arguments, Case, as_tuple
from livetalk_model.environment import kernels_line

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]

# Sizes that give every one of three threads work of its own; other ops take their largest small
# case.
SIZES: dict[str, dict[str, int]] = {
    "add_norm": {"B": 3, "L": 67, "D": 1000},
    "add_norm_quant": {"B": 3, "L": 67, "D": 1000},
    "add_residual": {"B": 2, "C": 96, "T": 3, "H": 19, "W": 23},
    "rms_norm": {"B": 3, "L": 67, "D": 1000},
    "rms_norm_rope": {"B": 3, "L": 67, "H": 5, "d": 64, "S": 67},
    "quantize": {"M": 301, "K": 640},
    "merge_lse": {"B": 3, "L": 67, "H": 5, "d": 200},
    "rms_norm_silu": {"B": 2, "C": 96, "T": 3, "H": 19, "W": 23},
}


def compiled_ops() -> list[str]:
    """Ops with a ``cpu`` backend."""
    return [op for op in op_names() if "cpu" in backend_names(op)]


def threaded_case(op: str, dtype: torch.dtype) -> Case:
    spec = load_op(op)
    small = [case for case in spec.cases(CPU, dtype) if not case.large]
    if op in SIZES:
        return small[0].at("threads", options={"channels_last": True}, **SIZES[op])
    return max(small, key=lambda case: spec.cost(case).flops)


def inputs(case: Case) -> Arguments:
    return load_op(case.op).make_inputs(case, Generator().manual_seed(3))


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def best_isa() -> Iterator[None]:
    yield
    torch.ops.livetalk.use_isa("best")


def test_extension_is_built_here() -> None:
    """Where tests run there is a compiler; without the kernels most of this suite says nothing."""
    assert cpu.missing() is None
    assert cpu.isa() in cpu.ISAS


def test_missing_kernels_give_their_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "FOLDER", tmp_path / "none")
    assert cpu.missing() == f"the compiled kernels were not built; {cpu.MEND}"
    noted = tmp_path / "noted"
    noted.mkdir()
    (noted / "_C.reason").write_text("no C++ compiler found; install g++\n")
    monkeypatch.setattr(cpu, "FOLDER", noted)
    reason = "the compiled kernels were not built: no C++ compiler found; install g++"
    assert cpu.missing() == reason
    case = Case(op="add_norm", device=CPU, dtype=torch.float32)
    assert cpu.supports(case) == reason
    with pytest.raises(UserError, match="add_norm=cpu: cannot run: the compiled kernels were not"):
        pick(case, "cpu", named=True)
    choice = pick(case, "auto", named=True)
    assert choice.name != "cpu" and reason in choice.reason
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "_C.so").write_text("no library")
    monkeypatch.setattr(cpu, "FOLDER", broken)
    answer = cpu.missing() or ""
    assert answer.startswith("_C.so does not load: ") and answer.endswith(cpu.MEND)
    assert "\n" not in answer


def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    """In the dynamic linker's own words; a symbol that torch does not have means another torch."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler, "the tests need a C++ compiler, as the compiled kernels do"
    source, library = tmp_path / "x.cpp", tmp_path / "x.so"
    source.write_text('extern "C" int nobody_has_it(); int call() { return nobody_has_it(); }')
    command = [compiler, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    assert cpu.load_library(library, "make it") == (
        f"x.so was built for another torch than this {torch.__version__} "
        "(undefined symbol: nobody_has_it); make it"
    )
    library.write_bytes(b"")
    assert cpu.load_library(library, "make it") == ("x.so does not load: file too short; make it")


@pytest.mark.parametrize(
    ("toolkit", "driver", "capability", "reason"),
    [
        (12080, 12040, (9, 0), None),  # machine code, by a driver of the same major version
        (12080, 13000, (12, 0), None),  # a newer driver runs and translates all
        (13000, 13000, (12, 0), None),
        (13000, 12090, (9, 0), "built with CUDA 13.0, but the driver serves 12.9; update"),
        (13000, 12090, (9, 0), "build with a CUDA 12.x toolkit"),
        (13010, 13000, (8, 9), None),
        (13010, 13000, (12, 0), "12.0 the driver has to translate .* CUDA 13.1, .* only 13.0;"),
        (12080, 12040, (10, 0), "10.0 the driver has to translate"),
    ],
)
def test_the_driver_and_the_toolkit(
    toolkit: int, driver: int, capability: tuple[int, int], reason: str | None
) -> None:
    found = cuda.driver_reason(toolkit, driver)
    found = found or cuda.translation_reason(capability, toolkit, driver)
    assert (found is None) == (reason is None)
    assert reason is None or re.search(reason, found or "")


def test_the_driver_is_asked_before_a_kernel_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "FOLDER", tmp_path)
    monkeypatch.setattr(cuda, "cuda_reason", lambda: None)
    monkeypatch.setattr(cuda, "load_library", lambda *_: None)
    missing = cuda.missing.__wrapped__
    assert missing() == f"the CUDA kernels were not built; {cuda.MEND}"
    (tmp_path / "_C_cuda.so").touch()
    old = SimpleNamespace(livetalk=SimpleNamespace())
    monkeypatch.setattr(cuda.torch, "ops", old)
    assert missing() == f"the CUDA kernels are older than this code; {cuda.REBUILD}"
    old.livetalk.cuda_versions = lambda: (13000, 12080)
    assert missing() == cuda.driver_reason(13000, 12080)
    old.livetalk.cuda_versions = lambda: (12080, 13000)
    assert missing() is None


def test_everything_else_works_without_the_kernels(tmp_path: Path) -> None:
    """In a fresh process, where nothing has loaded them before."""
    program = (
        "import pathlib, torch\n"
        "from livetalk_kernels.backends import cpu\n"
        f"cpu.FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        "from livetalk_kernels.dispatch import support_table\n"
        "from livetalk_kernels.ops import bind_ops\n"
        "device, dtype = torch.device('cpu'), torch.float32\n"
        "table = support_table(device=device, dtype=dtype)\n"
        "reasons = [row['cpu'] for row in table.values() if 'cpu' in row]\n"
        "ops = bind_ops(device=device, dtype=dtype)\n"
        "x, one = torch.randn(3, 8), torch.ones(8)\n"
        "out = ops.add_norm(x, x, None, one, one)\n"
        "assert not hasattr(torch.ops.livetalk, 'add_norm_cpu')\n"
        "assert reasons and all(reasons) and out[1].isfinite().all(), reasons\n"
        "assert 'cpu' not in set(ops.chosen.values()), ops.chosen\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_other_dtypes_and_devices_are_refused() -> None:
    half = Case(op="add_norm", device=CPU, dtype=torch.float16)
    assert cpu.supports(half) == "needs float32 or bfloat16, not float16"
    gpu = Case(op="add_norm", device=torch.device("cuda"), dtype=torch.float32)
    assert cpu.supports(gpu) == "runs on cpu, not on cuda"


@pytest.mark.usefixtures("best_isa")
def test_instruction_set_is_chosen_by_name() -> None:
    best = cpu.isa()
    torch.ops.livetalk.use_isa("scalar")
    assert cpu.isa() == "scalar"
    with pytest.raises(RuntimeError, match="no instruction set sse9; choose scalar, avx2, avx512,"):
        torch.ops.livetalk.use_isa("sse9")
    assert cpu.isa() == "scalar"
    torch.ops.livetalk.use_isa("best")
    assert cpu.isa() == best
    # Each set has all before it, so what is idle is what is above the best.
    assert tuple(cpu.idle_isas()) == cpu.ISAS[cpu.ISAS.index(best) + 1 :]


def test_doctor_says_why_a_higher_instruction_set_is_idle() -> None:
    assert kernels_line("amx", {}) == "compiled, using avx512 for fp32 and amx for bf16"
    line = "compiled, using avx512 for fp32 and avx512_bf16 for bf16; amx needs tile-permission,"
    idle = {"amx": "tile-permission"}
    assert kernels_line("avx512_bf16", idle) == f"{line} which this machine lacks"
    idle = {"avx512": "avx512f avx512bw", "avx512_bf16": "avx512f avx512bw avx512bf16"}
    line = "compiled, using avx2; avx512 needs avx512f, which this machine lacks"
    assert kernels_line("avx2", idle) == line


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", compiled_ops())
def test_results_do_not_depend_on_the_number_of_threads(op: str, dtype: torch.dtype) -> None:
    case = threaded_case(op, dtype)
    backend = load_backend(op, "cpu")
    assert backend.supports(case) is None
    positional, keywords = inputs(case)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(as_tuple(backend.run(*positional, **keywords)))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(raw(first), raw(second))
