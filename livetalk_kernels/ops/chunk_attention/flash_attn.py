"""``chunk_attention`` by FlashAttention 3 where it is installed and the GPU is a Hopper, else 2.

Thin: both take [B, L, H, d] with any stride but the last and return a natural-log LSE [B, H, L].
Untested on a GPU.

Source: Dao 2023, arXiv 2307.08691; Shah et al. 2024, arXiv 2407.08608.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...spec import Case
from ._library import aligned, gpu_supports, neutral

INSTALL = "pip install 'livetalk[flash-attn]'"
HOPPER = 9


def supports(case: Case) -> str | None:
    """16 bits on CUDA, heads of up to 256 channels in multiples of 8, one of the libraries."""
    reason = gpu_supports(case)
    if reason is not None:
        return reason
    try:
        attention_function(is_hopper(case.device))
    except ImportError as error:
        return f"flash-attn cannot be imported ({str(error).splitlines()[0]}); {INSTALL}"
    return None


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    attention = attention_function(is_hopper(q_BLHd.device))
    q, k, v = aligned(q_BLHd), aligned(k_BSHd), aligned(v_BSHd)
    # Version 2 returns a third tensor, which is empty without dropout.
    out_BLHd, lse_BHL = attention(q, k, v, softmax_scale=scale, return_attn_probs=True)[:2]
    return out_BLHd.contiguous(), lse_BHL.contiguous()


def is_hopper(device: torch.device) -> bool:
    """Whether the device is of the generation that version 3 is for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER


@functools.cache
def attention_function(hopper: bool) -> Callable[..., Any]:
    """``flash_attn_func`` of version 3 or 2.

    Raises:
        ImportError: The library is missing, or built for another torch.
    """
    if hopper and importlib.util.find_spec("flash_attn_interface") is not None:
        newer = importlib.import_module("flash_attn_interface").flash_attn_func
        # Releases of version 3 before September 2025 do not return the LSE on request.
        if "return_attn_probs" in inspect.signature(newer).parameters:
            return newer
    return importlib.import_module("flash_attn").flash_attn_func
