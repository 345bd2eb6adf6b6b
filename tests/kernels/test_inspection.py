"""``livetalk inspect``: what it reads, what it compares, and that no kernel has become worse."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from livetalk_kernels.backends.triton_launch import Launch
from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS
from livetalk_kernels.inputs import build
from livetalk_kernels.inspection import cuda_kernels, ptxas, sass
from livetalk_kernels.inspection.baseline import baseline_file, load, regressions, save
from livetalk_kernels.inspection.collect import collect
from livetalk_kernels.inspection.compile import specialise
from livetalk_kernels.inspection.cuda_kernels import readable
from livetalk_kernels.inspection.occupancy import (
    PROCESSORS,
    SHARED_RESERVED,
    blocks_per_sm,
    warps_per_sm,
)
from livetalk_kernels.inspection.report import Kernel, Report, as_json, faults
from livetalk_kernels.registry import backend_names, op_names
from livetalk_model.cli import inspect
from livetalk_model.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
TOYS = Path(__file__).with_name("toy_kernels.py")

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function first:
  REG:168 STACK:16 SHARED:5120 LOCAL:0 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function second:
  REG:30 STACK:UNKNOWN SHARED:1024 LOCAL:0 CONSTANT[0]:548 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
\tcode for sm_90a
\t\tFunction : first
\t.headerflags\t@"EF_CUDA_ACCELERATORS EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;        /* 0x00000a00ff017b82 */
                                                                 /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.LTC128B.128 R12, desc[UR8][R42.64+0x10] ;  /* 0x0 */
        /*0020*/                   LDG.E.64.CONSTANT R16, desc[UR8][R42.64] ;       /* 0x0 */
        /*0030*/          @!UP0    UTMALDG.2D [UR8], [UR4], desc[URZ] ;             /* 0x0 */
        /*0040*/                   LDGSTS.E.BYPASS.LTC128B.128 [R1], desc[UR4][R2.64] ;  /* 0x0 */
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;  /* 0x0 */
        /*0060*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;  /* 0x0 */
        /*0070*/               @P1 STG.E.U16 desc[UR8][R42.64], R12 ;               /* 0x0 */
        /*0080*/                   STL.64 [R1+0x8], R4 ;         /* 0x0 */
        /*0090*/                   LDL.LU R4, [R1] ;             /* 0x0 */
        /*00a0*/                   STS.128 [R1], R4 ;            /* 0x0 */
\t\t..........
\t\tFunction : second
        /*1230*/                   LDG.E R0, desc[UR4][R2.64] ;  /* 0x0 */
        /*1240*/                   STG.E.64 desc[UR4][R4.64], R0 ;  /* 0x0 */
"""
ELF = """
.nv.info
\t<0x1>
\tAttribute:\tEIATTR_REGCOUNT
\tFormat:\tEIFMT_SVAL
\tValue:\tfunction: second(0xc)\tregister count: 30
.nv.info.first
\t<0x1>
\tAttribute:\tEIATTR_REQNTID
\tFormat:\tEIFMT_SVAL
\tValue:\t0x80 0x2 0x1 
\t<0x22>
\tAttribute:\tEIATTR_CRS_STACK_SIZE
.nv.info.second
\t<0x1>
\tAttribute:\tEIATTR_CBANK_PARAM_SIZE
.text.second
"""  # noqa: W291
LOG = """\
ptxas-blackwell info    : 0 bytes gmem
ptxas-blackwell info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are \
serialized due to insufficient register resources for the wgmma pipeline in the function 'first' \
in line 496
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas warning : Value of threads per SM is out of range
ptxas info    : Compile time = 31.333 ms
"""
FIRST = sass.Code(
    registers=168,
    stack=16,
    static_shared=4096,
    threads=256,
    tensor_cores={"HGMMA": 2},
    tma={"UTMALDG": 1},
    loads={"128": 1, "64": 1},
    stores={"16": 1},
    copies={"128": 1},
    local=2,
)
GOOD = Kernel(
    op="add_norm",
    backend="triton",
    name="kernel",
    cases=("14b", "14b_ulysses8"),
    code=dataclasses.replace(FIRST, registers=72, loads={"128": 2}, stores={"128": 1}, local=0),
    dynamic_shared=1024,
    spills=(0, 0),
    dots=("bf16",),
    seconds=1.5,
)


def report_of(*kernels: Kernel, **changes) -> Report:
    fields = {"dtype": "bfloat16", "date": "2026-11-20", "commit": "abc", "kernels": kernels}
    return Report(**(fields | {"versions": {"triton": "3.9.0"}} | changes))


def recoded(**changes) -> Kernel:
    """The good kernel with other code."""
    return dataclasses.replace(GOOD, code=dataclasses.replace(GOOD.code, **changes))


def test_code_is_read():
    codes = sass.parse(RESOURCES, SASS, ELF)
    assert codes["first"] == FIRST
    assert codes["first"].widest_load == "TMA"  # compared with which widths do not matter
    assert codes["first"].widest_store == "16"
    assert codes["first"].wide_share == (128 + 128) / (128 + 64 + 128 + 16)
    second = codes["second"]
    assert (second.threads, second.stack, second.static_shared) == (None, None, 0)
    assert (second.widest_load, second.widest_store, second.wide_share) == ("32", "64", 0)
    assert not second.tensor_cores and not second.tma and not second.local


def test_log_is_read():
    log = ptxas.parse(LOG)
    assert log.spills == {"first": (16, 20), "second": (0, 0)}
    assert log.spilled() == (16, 20)
    assert [text.split()[0] for text in log.warnings] == ["(C7511)", "Value"]
    assert log.of("second").spilled() == (0, 0)
    assert [text.split()[0] for text in log.of("second").warnings] == ["Value"]
    assert log.of("first").warnings == log.warnings


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (1024, 32, 0, 2),  # 2048 threads
        (32, 16, 0, 32),  # 32 blocks
        (128, 168, 0, 3),  # 12 warps of 5376 registers: 3 to a quadrant
        (256, 255, 0, 1),
        (384, 168, 200 * 1024, 1),
        (128, 32, 227 * 1024, 1),
        (128, 32, 227 * 1024 + 1, 0),
        (128, 32, 113 * 1024, 2),  # with the reserved KB just half of an SM
        (128, 32, 113 * 1024 + 1, 1),
        (512, 128, 0, 1),
        (512, 129, 0, 0),  # more registers than there are
    ],
)
def test_occupancy(threads, registers, shared, blocks):
    assert blocks_per_sm(threads, registers, shared) == blocks
    assert warps_per_sm(threads, registers, shared) == blocks * threads // 32


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "warps"),
    [
        ((8, 0), 128, 32, 163 << 10, 4),
        ((8, 0), 128, 32, (163 << 10) + 1, 0),
        ((8, 0), 1024, 32, 0, 64),
        ((8, 9), 1024, 32, 0, 32),  # 48 warps are one and a half of such blocks
        ((8, 9), 32, 16, 0, 24),  # blocks
        ((12, 0), 128, 32, 49 << 10, 8),
        ((12, 0), 128, 32, (99 << 10) + 1, 0),
        ((10, 0), 128, 168, 0, 12),  # as a Hopper
    ],
)
def test_occupancy_of_other_gpus(capability, threads, registers, shared, warps):
    assert warps_per_sm(threads, registers, shared, capability) == warps


def test_the_processors_are_those_of_the_table():
    """A block may have all shared memory of an SM but the KB that the system takes."""
    for gpu in GPUS.values():
        assert PROCESSORS[gpu.capability].shared - SHARED_RESERVED == gpu.shared_memory


def test_every_fault_is_named():
    assert not list(faults(GOOD))
    half = dataclasses.replace(GOOD, dots=("bf16", "f32", "f8E4M3FN"))
    assert list(faults(half)) == ["multiplies f8E4M3FN without QGMMA"]
    assert list(faults(recoded(tensor_cores={"HMMA": 8}))) == ["multiplies bf16 without HGMMA"]
    assert list(faults(dataclasses.replace(GOOD, spills=(8, 4)))) == ["spills 12 bytes"]
    assert list(faults(recoded(local=3))) == ["3 accesses of local memory"]
    assert list(faults(recoded(stores={"32": 4}))) == ["stores 32 bits at most"]
    quantise = dataclasses.replace(recoded(stores={"64": 4}), pointers=("bf16", "fp32", "fp8e4nv"))
    assert not list(faults(quantise))  # 64 bits of FP8 are what 128 bits of bf16 become
    scale = dataclasses.replace(quantise, pointers=("bf16", "fp32"))
    assert list(faults(scale)) == ["stores 64 bits at most"]
    assert not list(faults(recoded(loads={"16": 1})))  # TMA loads what is large
    assert list(faults(recoded(loads={"64": 1}, copies={}, tma={}))) == ["loads 64 bits at most"]
    assert list(faults(dataclasses.replace(GOOD, warnings=("slow",)))) == ["compiler: slow"]
    assert list(faults(dataclasses.replace(GOOD, code=None, error="oh"))) == [
        "does not compile: oh"
    ]
    wider = recoded(loads={"256": 4, "32": 1}, stores={"256": 1}, copies={}, tma={})
    assert not list(faults(wider)) and wider.code.wide_share == (4 * 256 + 256) / (5 * 256 + 32)
    for capability, wanted in {(8, 9): "HMMA", (10, 0): "UTCHMMA", (12, 0): "HMMA"}.items():
        other = dataclasses.replace(GOOD, capability=capability)
        assert list(faults(other)) == [f"multiplies bf16 without {wanted}"]
    large = dataclasses.replace(GOOD, dynamic_shared=227 * 1024)  # on top of 4 KB of static memory
    assert [fault.split(":")[0] for fault in faults(large)] == ["fits no SM"]


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (GOOD, None),
        (dataclasses.replace(GOOD, seconds=99.0), None),
        (recoded(registers=80), None),  # as many warps as before
        (recoded(registers=128), "16 warps per SM, 24 before"),
        (dataclasses.replace(GOOD, spills=(4, 4)), "spills 8 bytes, 0 before"),
        (recoded(local=1), "1 accesses of local memory, 0 before"),
        (recoded(tensor_cores={"HMMA": 2}), "no HGMMA any more"),
        (recoded(tma={}), "no TMA any more"),
        (recoded(barriers=6), "6 barriers of all warps in a step of main loops, 0 before"),
        (recoded(exposed=1), "1 loads of a last block that nothing hides, 0 before"),
        (recoded(tma={"UTMALDG": 9}, loads={}), None),
        (recoded(stores={"64": 1}, loads={"128": 9}), "stores 64 bits at most, 128 before"),
        (recoded(stores={"128": 1, "16": 1}), None),
        (
            recoded(stores={"128": 1, "32": 8}),
            "67% of the bytes in 128-bit accesses, 100% before",
        ),
        (dataclasses.replace(GOOD, warnings=("(C7510) x",)), "compiler: (C7510) x"),
        (dataclasses.replace(GOOD, code=None, error="oh"), "no longer compiles: oh"),
    ],
)
def test_what_is_worse_is_found(after, line):
    lines = regressions(report_of(GOOD), report_of(after))
    assert lines == ([] if line is None else [f"add_norm/kernel (14b): {line}"])


def test_kernels_are_compared_by_case():
    slow = dataclasses.replace(recoded(local=9), cases=("14b_ulysses8",))
    assert regressions(report_of(GOOD), report_of(slow)) == [
        "add_norm/kernel (14b_ulysses8): 9 accesses of local memory, 0 before"
    ]
    assert not regressions(report_of(GOOD), report_of(dataclasses.replace(slow, cases=("new",))))
    assert not regressions(report_of(GOOD), report_of(dataclasses.replace(slow, backend="cuda")))
    # A warning is known by its number, wherever it stands now.
    warned = dataclasses.replace(GOOD, warnings=("(C7510) in line 3",))
    moved = dataclasses.replace(GOOD, warnings=("(C7510) in line 4",))
    assert not regressions(report_of(warned), report_of(moved))


def test_a_saved_report_is_read_back(tmp_path):
    failed = dataclasses.replace(GOOD, code=None, error="oh", spills=None, seconds=None)
    report = report_of(GOOD, failed, notes=("no nvcc",))
    file = save(report, tmp_path)
    assert file == tmp_path / "inspect_triton3.9.json"
    assert load(tmp_path, report) == report
    assert build(Report, json.loads(json.dumps(as_json(report)))) == report
    assert save(report, tmp_path / "other.json") == tmp_path / "other.json"
    assert load(tmp_path / "other.json", report) == report


@pytest.mark.parametrize("text", [None, "{", "{}", '{"kernels": [{}]}', "[1]"])
def test_what_is_no_report_is_refused(tmp_path, text):
    file = tmp_path / "old.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match="old"):
        load(file, report_of(GOOD))


def test_reports_of_two_dtypes_are_not_compared(tmp_path):
    file = save(report_of(GOOD, dtype="float32"), tmp_path / "a.json")
    with pytest.raises(UserError, match="float32"):
        load(file, report_of(GOOD))
    other = report_of(GOOD, target="sm_89")
    assert baseline_file(tmp_path, other) == tmp_path / "inspect_triton3.9_sm_89.json"
    with pytest.raises(UserError, match="is for sm_90a; compare with the --gpu of it"):
        load(save(report_of(GOOD), tmp_path / "hopper.json"), other)
    with pytest.raises(UserError, match="name the file"):
        baseline_file(tmp_path, report_of(GOOD, versions={}))


def test_names_of_cuda_kernels():
    mangled = "_ZN8livetalk4cuda15add_norm_kernelIfLi8EEEvNS0_7AddNormE"
    assert readable([mangled, "plain"]) == {mangled: "add_norm_kernel<float, 8>", "plain": "plain"}


def dummy(pointer, descriptor, count, one, big, real, nothing, size, N: "tl.constexpr"):  # noqa: F821
    """Only its signature is used."""


def test_arguments_are_specialised_as_the_jit_does():
    triton = pytest.importorskip("triton")
    from triton.tools.tensor_descriptor import TensorDescriptor

    tensor = torch.empty(256, 128, dtype=torch.bfloat16, device="meta")
    descriptor = TensorDescriptor.from_tensor(tensor.to(torch.float8_e4m3fn), [128, 64])
    arguments = {
        "pointer": tensor, "descriptor": descriptor, "count": 32, "one": 1, "big": 2**31 + 1,
        "real": 2.0, "nothing": None, "size": 33, "N": 64,
    }  # fmt: skip

    def source(**changes):
        kernel = triton.runtime.JITFunction(dummy)
        return specialise(
            Launch(kernel=kernel, grid=(1,), arguments=arguments | changes, warps=8, stages=3)
        )

    found = source()
    assert found.ast.signature == {
        "pointer": "*bf16", "descriptor": "tensordesc<fp8e4nv[128, 64]>", "count": "i32",
        "one": "constexpr", "big": "i64", "real": "fp32", "nothing": "constexpr", "size": "i32",
        "N": "constexpr",
    }  # fmt: skip
    assert found.ast.constants == {(3,): 1, (6,): None, (8,): 64}
    divisible = [path for path, hints in found.ast.attrs.items() if hints]
    assert divisible == [(0,), (2,)]
    assert (found.options["num_warps"], found.options["num_stages"]) == (8, 3)
    # Launches share a kernel where they differ in nothing that the JIT looks at.
    assert source(count=64, size=35, big=2**40 + 1, real=3.0).key == found.key
    shifted = torch.empty(256 * 128 + 1, dtype=torch.bfloat16, device="meta")[1:]
    for change in ({"count": 33}, {"size": 1}, {"N": 32}, {"pointer": shifted}, {"big": 5}):
        assert source(**change).key != found.key, change


def without_interpreter(*command: object) -> subprocess.CompletedProcess:
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, env=environment, cwd=REPOSITORY,
    )  # fmt: skip


def test_toys_are_compiled_and_judged(tmp_path):
    """Kernels with every virtue and every fault, compiled for Hopper."""
    pytest.importorskip("triton")
    done = without_interpreter(TOYS, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {
        "dot": [],
        "tma": [],
        "dot_fp8": [],
        "dot_fp32": [],  # exact fp32 has no tensor cores
        "small_dot": ["multiplies bf16 without HGMMA"],
        "narrow": ["loads 16 bits at most", "stores 16 bits at most"],
        "spilling": ["spills"],
        "starved": ["spills", "compiler: (C7511) Potential Performance Loss"],
        "refused": ["does not compile: ptxas-blackwell fatal : (C7602) Insufficient registers"],
        "large": ["fits no SM"],
        "broken": ["does not compile: no such luck"],
    }
    for name, wanted in expected.items():
        faults = found[name]["faults"]
        assert len(faults) == len(wanted), (name, faults)
        assert all(fault.startswith(w) for fault, w in zip(faults, wanted, strict=True)), faults
    assert found["dot"]["code"]["tensor_cores"].keys() == {"HGMMA"}
    assert found["dot_fp8"]["code"]["tensor_cores"].keys() == {"QGMMA"}
    assert found["small_dot"]["code"]["tensor_cores"].keys() == {"HMMA"}
    assert not found["dot_fp32"]["code"]["tensor_cores"]
    assert found["tma"]["code"]["tma"].keys() == {"UTMALDG", "UTMASTG"}
    assert found["dot"]["code"]["threads"] == 128
    assert found["dot"]["dynamic_shared"] >= 3 * 2 * 128 * 64  # stages of both operands
    assert found["dot"]["derived"]["occupancy"] == found["dot"]["derived"]["warps_per_sm"] / 64
    kept = {file.suffix for file in tmp_path.iterdir() if file.name.startswith("toy.dot.")}
    assert kept == {".ptx", ".ttgir", ".sass", ".cubin"}
    assert found["dot_again"]["code"] == found["dot"]["code"]
    assert found["dot_again"]["spills"] == [0, 0]  # kept in Triton's cache, as the kernel is


def test_no_kernel_is_worse_than_its_baseline():
    """Every Triton kernel, at one shape: no fault, and nothing lost of what it had."""
    triton = pytest.importorskip("triton")
    version = ".".join(triton.__version__.split(".")[:2])
    baseline = REPOSITORY / f"profiles/data/inspect_triton{version}.json"
    compare = ["--compare", baseline] if baseline.is_file() else []
    command = ["-m", "livetalk_model.cli.main", "inspect", "--quick", "--json"]
    done = without_interpreter(*command, "--backend", "triton", *compare)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert not report["regressions"]
    found = {f"{kernel['op']}/{kernel['name']}": kernel["faults"] for kernel in report["kernels"]}
    assert not {name: faults for name, faults in found.items() if faults}
    ops = {kernel["op"] for kernel in report["kernels"]}
    assert ops == {op for op in op_names() if "triton" in backend_names(op)}
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("gpu", "target", "refused"),
    [
        ("a100", "sm_80", "add_norm_quant by triton: left out (14b_ulysses8, 14b): needs compute"),
        ("rtx4090", "sm_89", "chunk_attention by triton: left out (mid, 14b_ulysses8, 14b_ring8"),
        ("b200", "sm_100a", None),
        ("rtx5090", "sm_120a", "fp8_gemm by triton: left out (qkv_14b_ulysses8, qkv_14b, out_14b"),
    ],
)
def test_kernels_compile_for_other_gpus(gpu, target, refused):
    """Two quick ones of each, and what cannot run there is left out with its reason."""
    pytest.importorskip("triton")
    ops = ["merge_lse", "add_norm_quant"]
    if refused:
        ops.append(refused.split()[0])
    command = ["-m", "livetalk_model.cli.main", "inspect", "--quick", "--json", "--gpu", gpu]
    done = without_interpreter(*command, "--backend", "triton", *dict.fromkeys(ops))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == target
    assert any(note.startswith(refused) for note in report["notes"]) if refused else True
    kernels = {kernel["op"]: kernel for kernel in report["kernels"]}
    assert ("add_norm_quant" in kernels) == (gpu != "a100") and "merge_lse" in kernels
    for kernel in report["kernels"]:
        assert kernel["op"] in ops[:2] or kernel["name"] != "chunk_attention_kernel"
        assert kernel["capability"] == list(GPUS[gpu].capability)
        assert not kernel["error"], kernel


def test_the_interpreter_compiles_nothing(capsys):
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the suite runs kernels on the GPU here")
    assert main(["inspect", "--backend", "triton"]) == 2
    assert "unset" in capsys.readouterr().err


def test_an_op_that_is_none(capsys):
    assert main(["inspect", "add_nrom"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no op add_nrom") and "add_norm" in error


def test_no_cuda_kernel_has_a_fault():
    if not cuda_kernels.EXTENSION.is_file() and shutil.which("nvcc") is None:
        pytest.skip("neither the CUDA extension nor nvcc is here")
    report = collect([], dtype=torch.bfloat16, backends=["cuda"])
    assert report.kernels
    found = {kernel.name: list(faults(kernel)) for kernel in report.kernels}
    assert not {name: faults for name, faults in found.items() if faults}


def test_the_table_fits_a_terminal(capsys, monkeypatch):
    kernels = (
        GOOD,
        dataclasses.replace(GOOD, op="fp8_gemm_gelu_quant", name="fp8_gemm_gelu_quant_kernel"),
        dataclasses.replace(GOOD, code=None, error="oh", name=""),
        *(dataclasses.replace(GOOD, backend="cuda", name=f"k<{n}>", cases=()) for n in range(2)),
    )
    monkeypatch.setattr(inspect, "collect", lambda *args, **keywords: report_of(*kernels))
    assert main(["inspect"]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()), shown
    for text in ("fp8_gemm_gelu_quant", "fails", "2 versions", "HGMMA 2", "TMA/128", "5 kernels"):
        assert text in shown
    assert "1 fault" in shown and "does not compile: oh" in shown
