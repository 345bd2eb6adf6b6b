"""FP8 linear layers: a quarter of fp32's bytes, and Hopper's fastest matrix products.

Weights are e4m3 with one scale per output channel, quantised while the checkpoint is read.
Activations have one scale per token (or per 1x128 block, between the two feed-forward layers) and
are quantised by the kernel that produces them if possible, else by ``quantize``.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import FP8, FP8_BLOCK

PRECISIONS = ("exact", "fp8")


class Quantized(NamedTuple):
    """Activations in FP8, which represent ``values * scale``.

    values: float8_e4m3fn [..., K]; scale: fp32 [..., 1], or [..., K/128] for blocks.
    """

    values: Tensor
    scale: Tensor


class Fp8Linear(nn.Module):
    """x W^T + b with FP8 operands and fp32 accumulation.

    ``weight`` float8_e4m3fn [N, K], ``weight_scale`` fp32 [N, 1], ``bias`` [N] in the model's
    dtype, which is also the output's.
    """

    def __init__(self, inputs: int, outputs: int, ops: Ops) -> None:
        """Create the above parameters on the default device, uninitialised."""
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(outputs, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False)

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Map [..., K] to [..., N]; quantise x per token if it is not yet quantised."""
        values, scale = as_quantized(x, self.ops)
        out = self.ops.fp8_gemm(
            values.flatten(0, -2),
            self.weight,
            scale.flatten(0, -2),
            self.weight_scale,
            self.bias,
            out_dtype=self.bias.dtype,
        )
        return out.unflatten(0, values.shape[:-1])


def as_quantized(x: Tensor | Quantized, ops: Ops) -> Quantized:
    """Quantise per token, unless already done."""
    return x if isinstance(x, Quantized) else Quantized(*ops.quantize(x))


class Fp8FeedForward(nn.ModuleDict):
    """Linear, GELU (tanh), Linear; the hidden activations exist only in FP8.

    Parameter names are those of the published ``nn.Sequential``: layers ``0`` and ``2``.
    """

    def __init__(self, width: int, hidden: int, ops: Ops, *, m_major: bool = False) -> None:
        """Build the layers; ``hidden`` not divisible by 128 is quantised per token, separately.

        ``m_major``: store block scales in the layout that the second product reads fastest.
        """
        super().__init__({"0": Fp8Linear(width, hidden, ops), "2": Fp8Linear(hidden, width, ops)})
        self.ops, self.m_major = ops, m_major
        self.blocks = hidden % FP8_BLOCK == 0

    def forward(self, x: Tensor | Quantized) -> Tensor:
        """Map [..., width] to the same shape."""
        first = self["0"]
        if not self.blocks:
            return self["2"](F.gelu(first(x), approximate="tanh"))
        values, scale = as_quantized(x, self.ops)
        hidden = self.ops.fp8_gemm_gelu_quant(
            values.flatten(0, -2),
            first.weight,
            scale.flatten(0, -2),
            first.weight_scale,
            first.bias,
            m_major=self.m_major,
        )
        lead = values.shape[:-1]
        return self["2"](Quantized(*(part.unflatten(0, lead) for part in hidden)))
