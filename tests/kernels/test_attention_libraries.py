"""The attention backends of other libraries, against stand-ins with the libraries' signatures.

None of it has run on a GPU: what is tested here is what we hand over and make of the answer.
"""

import math
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from livetalk_kernels.dispatch import load_backend
from livetalk_kernels.ops._attention import plain_attention
from livetalk_kernels.ops.chunk_attention import _sdpa, flash_attn
from livetalk_kernels.spec import Case

LIBRARIES = ["flash_attn", "flash_attn_3", "flashinfer"]
FP16 = torch.float16
CPU, GPU = torch.device("cpu"), torch.device("cuda")

each_library = pytest.mark.parametrize("library", LIBRARIES)


def check_input(*tensors: Tensor) -> None:
    """What the libraries demand, or take for granted."""
    for tensor in tensors:
        assert tensor.dtype in {torch.float16, torch.bfloat16}
        assert tensor.numel() and tensor.stride(-1) == 1
        assert tensor.data_ptr() % 16 == 0
        assert all(step % 8 == 0 for step in tensor.stride()[:-1])


def flash_attn_2(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    check_input(q, k, v)
    assert not (dropout_p or causal or softcap) and window_size == (-1, -1)
    out, lse = plain_attention(q, k, v, softmax_scale)
    out = out.to(q.dtype)
    return (out, lse, q.new_empty(0)) if return_attn_probs else out


def flash_attn_3(
    q,
    k,
    v,
    softmax_scale=None,
    causal=False,
    qv=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    num_splits=1,
    pack_gqa=None,
    deterministic=False,
    sm_margin=0,
    return_attn_probs=False,
):
    check_input(q, k, v)
    assert not (causal or softcap or attention_chunk) and window_size == (-1, -1)
    out, lse = plain_attention(q, k, v, softmax_scale)
    out = out.to(q.dtype)
    return (out, lse) if return_attn_probs else out


def flash_attn_3_of_august_2025(q, k, v, softmax_scale=None, causal=False, sm_margin=0):
    raise AssertionError("it returns no LSE")


def single_prefill_with_kv_cache(
    q,
    k,
    v,
    scale_q=None,
    scale_k=None,
    scale_v=None,
    o_dtype=None,
    custom_mask=None,
    packed_custom_mask=None,
    causal=False,
    kv_layout="NHD",
    pos_encoding_mode="NONE",
    use_fp16_qk_reduction=False,
    sm_scale=None,
    window_left=-1,
    logits_soft_cap=None,
    rope_scale=None,
    rope_theta=None,
    backend="auto",
    return_lse=False,
):
    """FlashInfer takes [L, H, d] and gives a binary LSE [L, H]."""
    assert q.ndim == k.ndim == v.ndim == 3
    assert scale_q is None and kv_layout == "NHD" and not causal and window_left == -1
    check_input(q, k, v)
    out, lse = plain_attention(q[None], k[None], v[None], sm_scale)
    lse = lse[0].T / math.log(2)
    return (out[0].to(q.dtype), lse.contiguous()) if return_lse else out[0]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Both libraries in all their versions; a GPU that is no Hopper."""
    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_2)
    stand_in(monkeypatch, "flash_attn_interface", flash_attn_func=flash_attn_3)
    stand_in(monkeypatch, "flashinfer", single_prefill_with_kv_cache=single_prefill_with_kv_cache)
    flash_attn.attention_function.cache_clear()
    yield monkeypatch
    flash_attn.attention_function.cache_clear()


def attend(library: str, found: pytest.MonkeyPatch, *arguments: Any, **keywords: Any) -> Any:
    if library == "flash_attn_3":
        found.setattr(flash_attn, "is_hopper", lambda device: True)
        library = "flash_attn"
    return load_backend("chunk_attention", library).run(*arguments, **keywords)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(FP16)


@each_library
@pytest.mark.parametrize("scale", [None, 0.02])
def test_gives_what_the_contract_says(
    library: str, scale: float | None, found: pytest.MonkeyPatch
) -> None:
    q, k, v = random(2, 7, 3, 64), random(2, 11, 3, 64, seed=1), random(2, 11, 3, 64, seed=2)
    out, lse = attend(library, found, q, k, v, scale=scale)
    expected_out, expected_lse = plain_attention(q, k, v, scale)
    assert out.dtype == FP16 and out.is_contiguous()
    assert lse.dtype == torch.float32 and lse.shape == (2, 3, 7) and lse.is_contiguous()
    assert torch.allclose(out.float(), expected_out, rtol=1e-3, atol=1e-6)
    assert torch.allclose(lse, expected_lse, rtol=1e-6)
    factor = 64**-0.5 if scale is None else scale
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) * factor
    assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-4)


@each_library
@pytest.mark.parametrize("shape", [(1, 0, 4), (1, 4, 0), (0, 4, 4)])
def test_empty_inputs_do_not_reach_the_library(
    library: str, shape: tuple[int, int, int], found: pytest.MonkeyPatch
) -> None:
    B, L, S = shape
    q, k, v = random(B, L, 2, 64), random(B, S, 2, 64), random(B, S, 2, 64)
    out, lse = attend(library, found, q, k, v)
    assert out.shape == q.shape and not out.any()
    assert torch.equal(lse, torch.full((B, 2, L), -torch.inf))


@each_library
@pytest.mark.parametrize("case", ["fused", "offset", "odd_rows"])
def test_strided_inputs(library: str, case: str, found: pytest.MonkeyPatch) -> None:
    """Slices of a fused tensor pass as they are; rows at odd addresses are copied."""
    if case == "fused":
        q, k, v = random(2, 5, 3, 2, 64).unbind(2)
    elif case == "offset":
        flat = random(3, 5 * 2 * 64 + 1)
        q, k, v = (row[1:].view(1, 5, 2, 64) for row in flat)
    else:
        q, k, v = (x[..., :64] for x in random(3, 2, 5, 2, 65).unbind(0))
    out, lse = attend(library, found, q, k, v)
    expected_out, expected_lse = plain_attention(*(x.clone() for x in (q, k, v)))
    assert torch.allclose(out.float(), expected_out, rtol=1e-3, atol=1e-6)
    assert torch.allclose(lse, expected_lse, rtol=1e-6)


def test_fused_slices_are_not_copied(found: pytest.MonkeyPatch) -> None:
    seen = []
    stand_in(
        found,
        "flash_attn",
        flash_attn_func=lambda *qkv, **options: seen.extend(qkv) or flash_attn_2(*qkv, **options),
    )
    q, k, v = random(1, 5, 3, 2, 64).unbind(2)
    attend("flash_attn", found, q, k, v)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (q, k, v)]


def test_version_3_is_for_hoppers_and_must_return_an_lse(found: pytest.MonkeyPatch) -> None:
    assert flash_attn.attention_function(False) is flash_attn_2
    assert flash_attn.attention_function(True) is flash_attn_3
    flash_attn.attention_function.cache_clear()
    stand_in(found, "flash_attn_interface", flash_attn_func=flash_attn_3_of_august_2025)
    assert flash_attn.attention_function(True) is flash_attn_2
    flash_attn.attention_function.cache_clear()
    found.delitem(sys.modules, "flash_attn_interface")
    assert flash_attn.attention_function(True) is flash_attn_2


def case(device: torch.device = GPU, dtype: torch.dtype = FP16, **dims: int) -> Case:
    return Case(op="chunk_attention", device=device, dtype=dtype, dims=dims)


def reason(backend: str, **changes: Any) -> str | None:
    return load_backend("chunk_attention", backend).supports(case(**changes))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that says it has a Hopper with cuDNN."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    return monkeypatch


GPU_BACKENDS = ["flash_attn", "flashinfer", "sdpa_cudnn"]


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "sdpa_flash"])
def test_reasons(backend: str, found: pytest.MonkeyPatch, gpu: pytest.MonkeyPatch) -> None:
    assert reason(backend) is None  # when a model is built, sizes are not known
    assert reason(backend, dtype=torch.bfloat16, L=5, S=7, H=40, d=128) is None
    assert reason(backend, d=100) is not None and "not 100" in str(reason(backend, d=100))
    assert "not 264" in str(reason(backend, d=264))
    assert "needs float16 or bfloat16, not float32" in str(reason(backend, dtype=torch.float32))
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert reason(backend) == "needs compute capability 8.0 or newer, not 7.5"
    gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA device" in str(reason(backend))


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_none_of_them_runs_on_a_cpu(backend: str) -> None:
    assert reason(backend, device=CPU) == "runs on cuda, not on cpu"


@pytest.mark.parametrize(
    ("backend", "extra"), [("flash_attn", "flash-attn"), ("flashinfer", "flashinfer")]
)
def test_a_missing_library_says_how_to_install_it(
    backend: str, extra: str, found: pytest.MonkeyPatch, gpu: pytest.MonkeyPatch
) -> None:
    found.setitem(sys.modules, backend, None)
    found.setitem(sys.modules, "flash_attn_interface", None)
    found.setattr(flash_attn, "is_hopper", lambda device: False)
    text = reason(backend)
    assert text is not None and text.endswith(f"; pip install 'livetalk[{extra}]'")
    assert "\n" not in text


def test_reasons_of_single_libraries(found: pytest.MonkeyPatch, gpu: pytest.MonkeyPatch) -> None:
    assert reason("flashinfer", d=32) == "needs heads of 64, 128 or 256 channels, not 32"
    assert reason("flash_attn", d=256) is None and reason("sdpa_cudnn", d=256) is not None
    assert reason("sdpa_cudnn", S=1) == "cuDNN takes no single key"
    gpu.setattr(torch.backends.cudnn, "version", lambda: 8907)
    assert "cuDNN 9" in str(reason("sdpa_cudnn"))


def test_cudnn_is_called_by_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's Python arguments, checked by its fake implementation; LSE is [B, H, L, 1]."""
    with torch.device("meta"):
        q, k, v = (torch.empty(2, length, 3, 64, dtype=FP16) for length in (5, 7, 7))
    out, lse = _sdpa.attend(_sdpa.cudnn, q, k, v, 0.1)
    assert out.shape == q.shape and out.dtype == FP16 and out.is_contiguous()
    assert lse.shape == (2, 3, 5) and lse.dtype == torch.float32 and lse.is_contiguous()


@pytest.mark.parametrize("kernel", [_sdpa.flash, _sdpa.efficient])
def test_other_cuda_kernels_are_called_by_their_schemas(kernel: _sdpa.Kernel) -> None:
    with torch.device("meta"):
        q, k, v = (torch.empty(2, length, 3, 64, dtype=FP16) for length in (5, 7, 7))
    out, lse = _sdpa.attend(kernel, q, k, v, None)
    assert out.shape == q.shape and lse.shape == (2, 3, 5) and lse.is_contiguous()


def test_math_in_parts_is_math(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences are done in parts, so that the scores fit."""
    q, k, v = (random(1, 20, 2, 16, seed=seed).float() for seed in range(3))
    whole = load_backend("chunk_attention", "sdpa_math").run(q, k, v)
    monkeypatch.setattr(_sdpa, "SCORES", 3 * 2 * 20)
    parts = load_backend("chunk_attention", "sdpa_math").run(q, k, v)
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
