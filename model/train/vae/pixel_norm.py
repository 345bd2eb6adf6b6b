"""The VAE's norm and SiLU with a custom backward pass, in a third of autograd's time.

Sums over a pixel's few channels are products with a small matrix, which is far faster than a
reduction over 8 neighbours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-12  # added to the mean square


def norm_silu(x_BCTHW: Tensor, gamma: Tensor) -> Tensor:
    """Compute SiLU of ``gamma x / rms(x)``, with the root mean square over a pixel's channels.

    Args:
        x_BCTHW: Any floating dtype; channels_last_3d is fastest.
        gamma: [C, 1, 1, 1].

    Returns:
        [B, C, T, H, W] of x's dtype, channels_last_3d.
    """
    x_BTHWC = x_BCTHW.permute(0, 2, 3, 4, 1)
    y_NC = _NormSiLU.apply(x_BTHWC.reshape(-1, x_BCTHW.shape[1]), gamma.flatten())
    return y_NC.view(x_BTHWC.shape).permute(0, 4, 1, 2, 3)


class _NormSiLU(torch.autograd.Function):
    """On [N, C]. With u = x s, s = 1 / rms(x), h = gamma u:  dx = s (du - u mean(u du))."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, gamma_C: Tensor) -> Tensor:
        channels = x_NC.shape[1]
        mean_CC = x_NC.new_full((channels, channels), 1 / channels)
        inverse_NC = torch.mm(x_NC * x_NC, mean_CC).add_(_LEAST).rsqrt_()
        unit_NC = x_NC * inverse_NC
        ctx.save_for_backward(unit_NC, inverse_NC, gamma_C, mean_CC)
        return F.silu(unit_NC * gamma_C.to(x_NC.dtype), inplace=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        unit_NC, inverse_NC, gamma_C, mean_CC = ctx.saved_tensors
        gamma = gamma_C.to(unit_NC.dtype)
        inner_NC = torch.ops.aten.silu_backward(gradients[0], unit_NC * gamma)
        product_NC = inner_NC * unit_NC
        gamma_gradient = product_NC.sum(0, dtype=torch.float32).to(gamma_C.dtype)
        along_NC = product_NC.mul_(gamma) @ mean_CC
        outer_NC = inner_NC.mul_(gamma).addcmul_(unit_NC, along_NC, value=-1)
        return outer_NC.mul_(inverse_NC), gamma_gradient
