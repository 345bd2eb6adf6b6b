"""``chunk_attention`` with FlashAttention 2, also the origin of torch's kernel (``sdpa_flash``).

Source: Dao 2023, arXiv 2307.08691.
"""

import importlib

from torch import Tensor

from ...spec import Case
from ._library import flash_attention, gpu_supports


def supports(case: Case) -> str | None:
    """Require 16 bits on CUDA, heads of up to 256 channels in multiples of 8, and the library."""
    return gpu_supports(case) or case.libraries.problem("flash-attn")


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    library = importlib.import_module("flash_attn")
    return flash_attention(library.flash_attn_func, q_BLHd, k_BSHd, v_BSHd, scale)
