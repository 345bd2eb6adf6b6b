"""Computes on a CPU, for `fake_cuda`, what PyTorch computes only on a GPU."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ATEN: Any = torch.ops.aten
BLOCKS = functional.ScalingType.BlockWise1x128.value


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``aten::_scaled_dot_product_flash_attention``, the first two results."""
    own = ATEN._scaled_dot_product_flash_attention_for_cpu
    out, lse = own(query, key, value, dropout_p, is_causal, scale=scale)
    return out, lse


def efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``aten::_scaled_dot_product_efficient_attention``; pads the LSE's rows to 32."""
    assert attn_bias is None and compute_log_sumexp
    out, lse = flash(query, key, value, dropout_p, is_causal, scale=scale)
    return out, functional.pad(lse, (0, -lse.shape[-1] % 32))


def cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``aten::_scaled_dot_product_cudnn_attention``; its LSE is [B, H, L, 1]."""
    assert attn_bias is None and compute_log_sumexp
    out, lse = flash(query, key, value, dropout_p, is_causal, scale=scale)
    return out, lse[..., None]


def mm(self: Tensor, mat2: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """Compute ``aten::mm.dtype``, whose sums are not rounded to the operands' dtype."""
    return torch.matmul(self.float(), mat2.float()).to(out_dtype or self.dtype)


def scaled_mm(
    self: Tensor,
    mat2: Tensor,
    scale_a: list[Tensor],
    recipe_a: list[int],
    swizzle_a: list[int],
    scale_b: list[Tensor],
    recipe_b: list[int],
    swizzle_b: list[int],
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
    contraction_dim: list[int] | tuple[int, ...] = (),
    use_fast_accum: bool = False,
) -> Tensor:
    """Compute ``aten::_scaled_mm_v2``, which on a CPU lacks scales per block of 128."""
    if recipe_a != [BLOCKS]:
        return torch._scaled_mm_v2(
            self, mat2, scale_a, recipe_a, swizzle_a, scale_b, recipe_b, swizzle_b, bias,
            out_dtype, contraction_dim, use_fast_accum,
        )  # fmt: skip
    assert recipe_b == [BLOCKS] and not (swizzle_a or swizzle_b or bias is not None)
    factors = []
    for matrix, (scale,) in ((self, scale_a), (mat2.T, scale_b)):
        rows, blocks = matrix.shape[0], -(-matrix.shape[1] // 128)
        assert scale.shape == (rows, blocks) and scale.stride() == (1, rows), scale.stride()
        factors.append(matrix.float() * scale.repeat_interleave(128, 1)[:, : matrix.shape[1]])
    return torch.matmul(factors[0], factors[1].T).to(out_dtype or torch.bfloat16)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Compute ``conv2d`` and ``conv3d`` in fp32 with oneDNN: torch's bf16 loops take minutes."""
    spatial = weight.ndim - 2
    sizes = [[x] * spatial if isinstance(x, int) else x for x in (padding, stride, dilation)]
    if input.dtype == torch.float64:
        ordered = (sizes[1], sizes[0], sizes[2], False, [0] * spatial, groups)
        return torch.convolution(input, weight, bias, *ordered)
    offset = None if bias is None else bias.float()
    around, steps, dilated = sizes
    out: Tensor = torch.mkldnn_convolution(
        input.float(), weight.float(), offset, around, steps, dilated, groups
    )
    return out.to(input.dtype)


def cudnn_convolution(
    self: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
) -> Tensor:
    """Compute ``aten::cudnn_convolution``."""
    return convolve(self, weight, None, stride, padding, dilation, groups)


KERNELS: Mapping[Any, Callable[..., Any]] = {
    ATEN._scaled_dot_product_flash_attention: flash,
    ATEN._scaled_dot_product_efficient_attention: efficient,
    ATEN._scaled_dot_product_cudnn_attention: cudnn,
    torch.mm: mm,
    torch._scaled_mm_v2: scaled_mm,
    torch.conv2d: convolve,
    torch.conv3d: convolve,
    torch.cudnn_convolution: cudnn_convolution,
}
"""Torch function -> its substitute, with the same parameters and the results that are used."""
