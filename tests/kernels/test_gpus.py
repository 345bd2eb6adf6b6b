"""GPUs that are not here: their table, what backends say of them, and what ``auto`` takes there."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from livetalk_kernels import KernelConfig, advice
from livetalk_kernels.advice import changes, choose
from livetalk_kernels.backends.libraries import LIBRARIES, Libraries, release
from livetalk_kernels.backends.reasons import cuda_reason
from livetalk_kernels.dispatch import pick
from livetalk_kernels.gpus import GPUS
from livetalk_kernels.ops import _attention_launch
from livetalk_kernels.ops.chunk_attention import triton_fp8
from livetalk_kernels.ops.context_attention import triton as context_triton
from livetalk_kernels.ops.fp8_gemm import triton as gemm_triton
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import Case, OpSpec

GPU, BF16 = torch.device("cuda"), torch.bfloat16
DATA = Path(__file__).parents[2] / "profiles/data"
BARE = Libraries(supposed=dict.fromkeys(LIBRARIES, "") | {"cuda": "13.0", "cudnn": "9.19"})
TRITON = BARE.supposing({"triton": "3.9"})
OP = "chunk_attention"


def attention(gpu: str, **supposed: str) -> str:
    """What ``auto`` takes; ``fa3`` and ``fa2`` are FlashAttention's versions."""
    titles = {"fa3": "flash-attn 3", "fa2": "flash-attn"}
    names = {titles.get(name, name): version for name, version in supposed.items()}
    case = Case(op=OP, device=GPU, dtype=BF16, gpu=GPUS[gpu], libraries=TRITON.supposing(names))
    return pick(case, "auto", named=False).name


def test_shared_memory_by_capability() -> None:
    kib = {name: GPUS[name].shared_memory >> 10 for name in ("a100", "l40s", "h800", "b200")}
    assert kib == {"a100": 163, "l40s": 99, "h800": 227, "b200": 227}
    assert GPUS["rtx5090"].shared_memory == GPUS["rtx4090"].shared_memory == 101376
    assert GPUS["h20"].capability == (9, 0) and GPUS["rtx5090"].capability == (12, 0)


@pytest.mark.parametrize("gpu", ["h100", "h800", "h20", "h200"])
def test_attention_on_hopper(gpu: str) -> None:
    """FlashAttention 3, then cuDNN, then Triton, then FlashAttention 2."""
    assert attention(gpu, fa3="3.0") == "flash_attn3"
    assert attention(gpu, fa3="3.0", cudnn="9.10.2") == "flash_attn3"
    assert attention(gpu) == "sdpa_cudnn"
    assert attention(gpu, fa2="2.8") == "sdpa_cudnn"
    assert attention(gpu, cudnn="9.10.2") == "triton"
    assert attention(gpu, cudnn="9.15.0") == "triton"
    assert attention(gpu, cudnn="9.15.1") == "sdpa_cudnn"
    assert attention(gpu, cudnn="9.10.2", triton="") == "sdpa"


def test_attention_elsewhere() -> None:
    for gpu in ("a100", "l40s", "rtx4090", "rtx5090"):
        assert attention(gpu, fa3="3.0") == "sdpa"
    assert attention("b200", fa3="3.0") == "sdpa_cudnn"
    assert attention("b200", cudnn="9.10.2") == "triton"


def test_nothing_but_the_library_s_own_reason_is_asked_twice() -> None:
    """What installing more would change, and only that."""
    options = {"device": GPU, "dtype": BF16, "gpu": GPUS["h100"], "libraries": TRITON}
    found = changes(choose(KernelConfig(), **options), KernelConfig(), **options)
    reported = {(change.library, change.op): (change.now, change.then) for change in found}
    assert reported == {
        ("flash-attn 3", OP): ("sdpa_cudnn", "flash_attn3"),
        ("cutlass kernels", "fp8_gemm"): ("triton", "cutlass"),
        ("cutlass kernels", "fp8_gemm_gelu_quant"): ("triton", "cutlass"),
    }
    assert all(change.install for change in found)
    options["gpu"] = GPUS["rtx4090"]
    assert not changes(choose(KernelConfig(), **options), KernelConfig(), **options)
    options |= {"gpu": GPUS["h100"], "libraries": TRITON.supposing({"cudnn": "9.10"})}
    found = changes(choose(KernelConfig(), **options), KernelConfig(), **options)
    assert ("cudnn", "triton", "sdpa_cudnn") in [(c.library, c.now, c.then) for c in found]


@pytest.mark.parametrize("cutlass", [False, True])
def test_a_build_that_cannot_load_here_is_supposed(
    cutlass: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels only load where there is a GPU: the file says what will be there."""
    monkeypatch.setattr(advice, "FOLDER", tmp_path)
    assert "cuda kernels" not in advice.suppositions(BARE)
    (tmp_path / "_C_cuda.so").write_bytes(b"..fp8_gemm_cutlass.." if cutlass else b"..")
    found = advice.suppositions(BARE)
    assert found == {"cuda kernels": "built", "cutlass kernels": "built" if cutlass else ""}
    case = Case(op="fp8_gemm", device=GPU, dtype=BF16, gpu=GPUS["h800"])
    case = dataclasses.replace(case, libraries=BARE.supposing(found))
    reason = load_backend("fp8_gemm", "cutlass").supports(case)
    assert reason == (None if cutlass else "needs cutlass kernels; make cutlass")


def test_a_preference_is_the_closest_one() -> None:
    spec = dataclasses.replace(
        load_op(OP), preference={"cuda": ("a",), "cuda 9": ("b",), "cuda 9.0": ("c",), "cpu": ()}
    )
    assert isinstance(spec, OpSpec)

    def preferred(capability: tuple[int, int]) -> str:
        gpu = dataclasses.replace(GPUS["h100"], capability=capability)
        return spec.preferred(Case(op=OP, device=GPU, dtype=BF16, gpu=gpu))[0]

    assert [preferred(pair) for pair in ((8, 0), (9, 0), (9, 1))] == ["a", "c", "b"]
    assert spec.preferred(Case(op=OP, device=torch.device("cpu"), dtype=BF16)) == ("reference",)
    assert spec.preferred(Case(op=OP, device=GPU, dtype=BF16)) == ("a", "reference")


@pytest.mark.parametrize("version", ["3.6", "3.9"])
def test_kernels_need_no_more_shared_memory_than_is_said(version: str) -> None:
    """Held to what they were compiled to for Hopper."""
    kernels = json.loads((DATA / f"inspect_triton{version}.json").read_text())["kernels"]
    blocks = _attention_launch.choose_blocks(BF16, 128, compiled=True)
    narrow = dataclasses.replace(blocks, keys=context_triton.KEYS)
    said = {
        "chunk_attention_kernel": blocks.shared_memory(BF16),
        "audio_attention_kernel": blocks.shared_memory(BF16),
        "context_attention_kernel": narrow.shared_memory(BF16),
        "fp8_attention_kernel": triton_fp8.SHARED_MEMORY,
        "fp8_gemm_kernel": gemm_triton.shared_memory(BF16),
        "fp8_gemm_gelu_quant_kernel": gemm_triton.shared_memory(BF16),
    }
    for kernel in kernels:
        needed = kernel["dynamic_shared"]
        if kernel["name"] in said:
            assert needed <= said[kernel["name"]] <= GPUS["h100"].shared_memory, kernel["name"]
        else:
            assert needed <= 48 << 10, kernel["name"]  # what every GPU has without asking
    exact = {kernel["name"]: kernel["dynamic_shared"] for kernel in kernels}
    for name in ("chunk_attention_kernel", "fp8_attention_kernel", "fp8_gemm_kernel"):
        assert said[name] - exact[name] <= 1024


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CPUs is told apart from having no GPU: only one of them can be mended."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, reason in {
        None: "this torch is not built for CUDA; install a torch for CUDA",
        "13.0": "there is no CUDA device",
    }.items():
        monkeypatch.setattr(torch.version, "cuda", built)
        assert cuda_reason() == reason


def test_a_gpu_that_is_here_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SimpleNamespace(shared_memory_per_block=49152, shared_memory_per_block_optin=101376)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 1))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: small)
    case = Case(op="fp8_gemm", device=GPU, dtype=BF16, libraries=TRITON)
    assert (case.capability, case.shared_memory) == ((12, 1), 101376)
    assert pick(case, "auto", named=False).name == "scaled_mm"


def test_blocks_that_do_not_fit_are_refused() -> None:
    """Consumer Blackwell is newer than Hopper, and has less than half its shared memory."""
    for gpu in ("rtx4090", "rtx5090"):
        for op in ("chunk_attention", "context_attention", "audio_attention"):
            case = Case(op=op, device=GPU, dtype=BF16, gpu=GPUS[gpu], libraries=TRITON)
            assert "KiB of shared memory a block, and the GPU has 99" in str(
                load_backend(op, "triton").supports(case)
            )
    case = Case(op="fp8_gemm", device=GPU, dtype=BF16, gpu=GPUS["rtx5090"], libraries=TRITON)
    assert "the GPU has 99" in str(load_backend("fp8_gemm", "triton").supports(case))


def test_old_cudnn_convolves_slowly_and_says_so() -> None:
    case = Case(op="causal_conv3d", device=GPU, dtype=BF16, gpu=GPUS["h100"], libraries=TRITON)
    assert pick(case, "auto", named=False).caution == ""
    old = dataclasses.replace(case, libraries=TRITON.supposing({"cudnn": "9.10.2"}))
    caution = pick(old, "auto", named=False).caution
    assert "slow" in caution and "needs cudnn 9.15 or newer, not 9.10.2" in caution
    assert pick(dataclasses.replace(old, dtype=torch.float32), "auto", named=False).caution == ""


def test_versions_are_numbers() -> None:
    assert release("9.19.0+cu130") == (9, 19, 0) and release("3.0.0b1") == (3, 0)
    assert release("unknown") == ()


def test_fp8_takes_what_a_gpu_can_do() -> None:
    """Everything installed: no GPU from Ampere on falls to the reference for a linear layer."""
    everything = Libraries(supposed=dict.fromkeys(LIBRARIES, "99"))
    bare = BARE.supposing({"cuda": "12.8"})
    wanted = {  # with everything, and with torch alone
        "h100": ("cutlass", "bf16"),
        "h200": ("cutlass", "bf16"),
        "b200": ("triton", "scaled_mm"),
        "l40s": ("scaled_mm", "scaled_mm"),
        "rtx4090": ("scaled_mm", "scaled_mm"),
        "rtx5090": ("scaled_mm", "scaled_mm"),
        "a100": ("bf16", "bf16"),
    }
    for op in ("fp8_gemm", "fp8_gemm_gelu_quant"):
        for name, chosen in wanted.items():
            found = tuple(
                pick(
                    Case(op=op, device=GPU, dtype=BF16, gpu=GPUS[name], libraries=libraries),
                    "auto",
                    named=False,
                ).name
                for libraries in (everything, bare)
            )
            assert found == chosen, (op, name)


def test_the_reference_on_a_gpu_warns_when_it_is_called(caplog: pytest.LogCaptureFixture) -> None:
    """Ampere cannot round to FP8 in Triton: said once, and only if a model quantises."""
    case = Case(op="quantize", device=GPU, dtype=BF16, gpu=GPUS["a100"], libraries=TRITON)
    choice = pick(case, "auto", named=False)
    assert choice.name == "reference" and "needs compute capability 8.9" in choice.caution
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for _ in range(2):
        choice.run(torch.ones(2, 8))
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("quantize=reference: runs in plain PyTorch, slowly: not triton: needs")
    assert not pick(
        Case(op="quantize", device=GPU, dtype=BF16, gpu=GPUS["l40s"], libraries=TRITON),
        "auto",
        named=False,
    ).caution
