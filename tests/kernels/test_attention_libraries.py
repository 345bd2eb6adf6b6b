"""The attention backends of other libraries, against stand-ins with the libraries' signatures.

None of it has run on a GPU: what is tested here is what we hand over and make of the answer.
"""

import dataclasses
import math
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import _registry

from livetalk_kernels.backends.libraries import INSTALLED, LIBRARIES, Libraries
from livetalk_kernels.backends.reasons import cuda_reason
from livetalk_kernels.dispatch import pick
from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS
from livetalk_kernels.ops._attention import plain_attention
from livetalk_kernels.ops.chunk_attention import _sdpa
from livetalk_kernels.ops.chunk_attention._library import as_fp8
from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import calc_diff

BACKENDS = ["flash_attn", "flash_attn3", "flashinfer"]
FP8 = torch.float8_e4m3fn
FP16 = torch.float16
CPU, GPU = torch.device("cpu"), torch.device("cuda")

each_library = pytest.mark.parametrize("library", BACKENDS)


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
    assert not (causal or softcap or attention_chunk) and window_size == (-1, -1)
    descales = (q_descale, k_descale, v_descale)
    if q.dtype == FP8:  # its checks of FP8: contiguous rows of 16 bytes, fp32 scales per head
        B, _, H, d = q.shape
        assert k.dtype == v.dtype == FP8 and d % 16 == 0
        assert all(x.is_contiguous() and x.numel() for x in (q, k, v))
        assert all(x.shape == (B, H) and x.dtype == torch.float32 for x in descales)
        q, k, v = (
            x.float() * scale[:, None, :, None]
            for x, scale in zip((q, k, v), descales, strict=True)
        )
    else:
        check_input(q, k, v)
        assert descales == (None, None, None)
    out, lse = plain_attention(q, k, v, softmax_scale)
    out = out.to(torch.bfloat16 if q_descale is not None else q.dtype)
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
def found(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Both libraries in all their versions, and a compiler."""
    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_2)
    stand_in(monkeypatch, "flash_attn_interface", flash_attn_func=flash_attn_3)
    stand_in(monkeypatch, "flashinfer", single_prefill_with_kv_cache=single_prefill_with_kv_cache)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return monkeypatch


def attend(library: str, *arguments: Any, **keywords: Any) -> Any:
    return load_backend("chunk_attention", library).run(*arguments, **keywords)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(FP16)


@each_library
@pytest.mark.parametrize("scale", [None, 0.02])
def test_gives_what_the_contract_says(
    library: str, scale: float | None, found: pytest.MonkeyPatch
) -> None:
    q, k, v = random(2, 7, 3, 64), random(2, 11, 3, 64, seed=1), random(2, 11, 3, 64, seed=2)
    out, lse = attend(library, q, k, v, scale=scale)
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
    out, lse = attend(library, q, k, v)
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
    out, lse = attend(library, q, k, v)
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
    attend("flash_attn", q, k, v)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (q, k, v)]


def test_fp8_has_a_scale_per_head(found: pytest.MonkeyPatch) -> None:
    """Against the same operands rounded one head at a time, and within the contract's bounds."""
    q, k, v = random(2, 7, 3, 64), random(2, 11, 3, 64, seed=1), random(2, 11, 3, 64, seed=2)
    q[:, :, 1] *= 100  # a head whose scale must not be the others'
    v[1, :, 2] = 0
    out, lse = attend("flash_attn3_fp8", q, k, v, scale=0.01)
    assert out.dtype == FP16 and out.is_contiguous() and lse.is_contiguous()
    rounded = []
    for x in (q, k, v):
        heads = x.double().clone()
        for b in range(2):
            for h in range(3):
                peak = heads[b, :, h].abs().max().clamp_min(1e-30)
                heads[b, :, h] = (heads[b, :, h] * (448 / peak)).to(FP8).double() * (peak / 448)
        rounded.append(heads)
    same_out, same_lse = plain_attention(*rounded, 0.01)
    assert torch.allclose(out.double(), same_out, rtol=1e-2, atol=1e-4)
    assert torch.allclose(lse.double(), same_lse, atol=1e-4)
    exact = plain_attention(q.double(), k.double(), v.double(), 0.01)
    bounds = load_op("chunk_attention").approximate_bounds
    for value, truth, bound in zip((out, lse), exact, bounds, strict=True):
        assert calc_diff(value, truth) < bound.calc_diff
    x = random(1, 3, 2, 16)
    x[0, 0, 1, 0] = torch.nan
    values, scale = as_fp8(x, over=(1, 3))
    assert scale.shape == (1, 1, 2, 1) and scale[0, 0, 1].isnan() and not scale[0, 0, 0].isnan()
    assert not values[0, :, 0].isnan().any()


def case(device: torch.device = GPU, dtype: torch.dtype = FP16, **more: Any) -> Case:
    known = {name: more.pop(name) for name in ("gpu", "libraries") if name in more}
    return Case(op="chunk_attention", device=device, dtype=dtype, dims=more, **known)


ALL = Libraries(supposed=dict.fromkeys(LIBRARIES, "99"))
H100 = GPUS["h100"]


def reason(backend: str, **changes: Any) -> str | None:
    given = {"gpu": H100, "libraries": ALL, **changes}
    return load_backend("chunk_attention", backend).supports(case(**given))


GPU_BACKENDS = ["cudnn_fp8", "flash_attn", "flash_attn3", "flash_attn3_fp8", "flashinfer"]
GPU_BACKENDS.append("sdpa_cudnn")


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "sdpa_flash"])
def test_reasons(backend: str) -> None:
    assert reason(backend) is None  # when a model is built, sizes are not known
    assert reason(backend, dtype=torch.bfloat16, L=5, S=7, H=40, d=128) is None
    assert reason(backend, d=100) is not None and "not 100" in str(reason(backend, d=100))
    assert "not 272" in str(reason(backend, d=272))
    assert "needs float16 or bfloat16, not float32" in str(reason(backend, dtype=torch.float32))
    turing = dataclasses.replace(H100, capability=(7, 5))
    assert reason(backend, gpu=turing) == "needs compute capability 8.0 or newer, not 7.5"
    assert reason(backend, gpu=None) == cuda_reason()


@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_none_of_them_runs_on_a_cpu(backend: str) -> None:
    assert reason(backend, device=CPU, gpu=None) == "runs on cuda, not on cpu"


@pytest.mark.parametrize(
    ("backend", "module", "cure"),
    [
        ("flash_attn", "flash_attn", "pip install 'livetalk[flash-attn]'"),
        ("flash_attn3", "flash_attn_interface", "pip install 'flash-attn-3' from PyTorch's"),
        ("flash_attn3_fp8", "flash_attn_interface", "pip install 'flash-attn-3' from PyTorch's"),
        ("flashinfer", "flashinfer", "pip install 'livetalk[flashinfer]'"),
    ],
)
def test_a_missing_or_broken_library_says_so_and_hides_no_other(
    backend: str, module: str, cure: str, found: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken: built for another torch, so that it fails in any way when it is imported."""
    others = {"flash_attn", "flash_attn3", "flashinfer"} - {backend, backend.removesuffix("_fp8")}
    for source in ("", "raise OSError('undefined symbol: _ZN3c10\\nand more')"):
        if source:
            (tmp_path / f"{module}.py").write_text(source)
            found.syspath_prepend(str(tmp_path))
        found.delitem(sys.modules, module, raising=False)
        text = reason(backend, libraries=INSTALLED)
        assert text is not None and cure in text and "\n" not in text
        assert all(reason(other, libraries=INSTALLED) is None for other in others)


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "sdpa_flash", "triton_fp8"])
@pytest.mark.parametrize("gpu", ["h800", "h20"])
def test_the_vae_s_wide_head_is_left_to_auto(backend: str, gpu: str) -> None:
    """One head of 384 channels, which none of them has; the name is meant for heads of 128."""
    at = {"gpu": GPUS[gpu], "libraries": ALL, "dtype": torch.bfloat16}
    vae, transformer = case(H=1, d=384, **at), case(D=5120, H=40, d=128, **at)
    assert pick(transformer, backend, named=True).name == backend
    for named in (True, False):
        choice = pick(vae, backend, named=named, main=transformer)
        assert choice.name == pick(vae, "auto", named=False).name and not choice.approximate
        assert choice.reason.startswith(f"not {backend} here: ") and "384" in choice.reason
    with pytest.raises(UserError, match=r"channels.* not 272"):
        pick(vae, backend, named=True, main=case(H=8, d=272, **at))


def test_reasons_of_single_libraries(found: pytest.MonkeyPatch) -> None:
    assert reason("flashinfer", d=32) == "needs heads of 64, 128 or 256 channels, not 32"
    assert reason("flash_attn", d=256) is None and reason("sdpa_cudnn", d=256) is not None
    assert reason("sdpa_cudnn", S=1) == "cuDNN takes no single key"
    old = ALL.supposing({"cudnn": "9.10.2"})
    text = str(reason("sdpa_cudnn", libraries=old))
    assert "needs cudnn 9.15.1 or newer, not 9.10.2; pip" in text
    for gpu in ("a100", "rtx4090", "b200", "rtx5090"):
        assert "needs a Hopper" in str(reason("flash_attn3", gpu=GPUS[gpu]))
        assert reason("flash_attn", gpu=GPUS[gpu]) is None
    assert reason("flash_attn3", libraries=INSTALLED) is None
    stand_in(found, "flash_attn_interface", flash_attn_func=flash_attn_3_of_august_2025)
    assert "returns no LSE" in str(reason("flash_attn3", libraries=INSTALLED))
    found.setattr(shutil, "which", lambda name: None)
    text = str(reason("flashinfer", libraries=INSTALLED))
    assert "there is no nvcc; pip install flashinfer-jit-cache" in text


def test_cudnn_and_cuda_report_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    for number, text in {91501: "9.15.1", 8907: "8.9.7", 91900: "9.19.0"}.items():
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda n=number: n)
        assert INSTALLED.find("cudnn") == (text, "")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert INSTALLED.too_old("cuda", "12.9") is not None
    assert INSTALLED.too_old("cuda", "12.8") is None


def test_another_flash_attention_in_torch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """`activate_flash_attention_impl` changes what torch's operators are."""
    choice = pick(case(gpu=GPUS["a100"]), "auto", named=False)
    assert (choice.name, choice.caution) == ("sdpa", "")
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_ACTIVE", ("FA4", None))
    for backend in ("sdpa", "sdpa_flash"):
        choice = pick(case(gpu=GPUS["a100"]), backend, named=True)
        assert "flash attention is FA4 here" in choice.caution


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
