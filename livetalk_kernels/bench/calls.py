"""Which case a recorded call is: the other way round of the contracts' ``make_inputs``.

Sizes, dtypes and memory formats of the case's inputs are those of the call; how rows that are
slices of a wider tensor lie in memory is as the contract's cases have it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..spec import Case

Sizes = tuple[dict[str, int], dict[str, Any]]
"""Dims and options of a case."""


def case_of(
    op: str, device: torch.device, dtype: torch.dtype, arguments: tuple[Any, ...], keywords: Any
) -> Case | None:
    """The case of a call.

    Args:
        op: Name of the op.
        device: Where the case is to lie.
        dtype: Dtype of the activations.
        arguments: Positional arguments of the call, perhaps on ``meta``.
        keywords: Its other arguments.

    Returns:
        The case, named by its sizes; None for an op whose calls are not read here.
    """
    read = _READERS.get(op)
    if read is None:
        return None
    dims, options = read(*arguments, **keywords)
    name = ",".join(f"{letter}={size}" for letter, size in dims.items())
    return Case(
        op=op, device=device, dtype=dtype, dims=dims, options=options, name=name, large=True
    )


def _rows(x: Tensor) -> dict[str, int]:
    return {"B": 1, "L": x[..., 0].numel(), "D": x.shape[-1]}


def _add_norm(x: Tensor, y: Tensor, gate: Tensor | None, *vectors: Tensor, **_: Any) -> Sizes:
    return _rows(x), {} if gate is not None else {"gate": False}


def _add_residual(x: Tensor, y: Tensor, bias: Tensor) -> Sizes:
    return dict(zip("BCTHW", x.shape, strict=True)), _format(x)


def _rms_norm(x: Tensor, weight: Tensor, **_: Any) -> Sizes:
    gap = x.stride(-2) - x.shape[-1]
    return _rows(x), {"gap": gap} if gap else {}


def _rms_norm_rope(
    q: Tensor,
    k: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-6,
    **options: Any,
) -> Sizes:
    B, L, D = q.shape
    dims = {"B": B, "L": L, "H": num_heads, "d": D // num_heads, "S": cos.shape[0]}
    return dims, options if q.stride(1) > D else options | {"fused": False}


def _chunk_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Sizes:
    B, L, H, d = q.shape
    fused = q.stride(1) > H * d
    return (
        {"B": B, "L": L, "S": k.shape[1], "H": H, "d": d},
        options | {"fused": True} if fused else options,
    )


def _context_attention(
    q: Tensor, k_image: Tensor, v_image: Tensor, k_text: Tensor, v_text: Tensor, **options: Any
) -> Sizes:
    B, L, H, d = q.shape
    return {"B": B, "L": L, "I": k_image.shape[1], "S": k_text.shape[1], "H": H, "d": d}, options


def _audio_attention(
    q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int, **options: Any
) -> Sizes:
    B, L, H, d = q.shape
    dims = {"B": B, "L": L, "F": k.shape[1], "N": tokens_per_frame, "S": k.shape[2]}
    return dims | {"H": H, "d": d}, options


def _merge_lse(out: Tensor, lse: Tensor, *others: Tensor) -> Sizes:
    return dict(zip("BLHd", out.shape, strict=True)), {}


def _quantize(x: Tensor, *, block: int | None = None) -> Sizes:
    return {"M": x[..., 0].numel(), "K": x.shape[-1]}, {} if block is None else {"block": block}


def _gemm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Any, **_: Any) -> Sizes:
    (M, K), N = a.shape, b.shape[0]
    blocks = scale_a.shape[1]
    options: dict[str, Any] = {"block": K // blocks} if blocks > 1 else {}
    return {"M": M, "N": N, "K": K}, options if bias is not None else options | {"bias": False}


def _causal_conv3d(
    x: Tensor, history: Tensor | None, weight: Tensor, bias: Any, **options: Any
) -> Sizes:
    B, I, T, H, W = x.shape  # noqa: E741
    O, _, kt, k, _ = weight.shape  # noqa: E741
    stored = 0 if history is None else history.shape[2]
    dims = {"B": B, "I": I, "O": O, "t": stored, "T": T, "H": H, "W": W, "kt": kt, "k": k}
    options = {name: value for name, value in options.items() if name != "packed"}
    return dims, options | _format(x)


def _rms_norm_silu(x: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Sizes:
    biased = {} if bias is None else {"bias": True}
    return dict(zip("BCTHW", x.shape, strict=True)), _format(x) | biased


def _format(x: Tensor) -> dict[str, bool]:
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return {"channels_last": True} if last and not x.is_contiguous() else {}


_READERS: Mapping[str, Callable[..., Sizes]] = MappingProxyType(
    {
        "add_norm": _add_norm,
        "add_norm_quant": _add_norm,
        "add_residual": _add_residual,
        "audio_attention": _audio_attention,
        "causal_conv3d": _causal_conv3d,
        "chunk_attention": _chunk_attention,
        "context_attention": _context_attention,
        "fp8_gemm": _gemm,
        "fp8_gemm_gelu_quant": _gemm,
        "merge_lse": _merge_lse,
        "quantize": _quantize,
        "rms_norm": _rms_norm,
        "rms_norm_rope": _rms_norm_rope,
        "rms_norm_silu": _rms_norm_silu,
    }
)
