"""``chunk_attention`` with FlashAttention 3, which is for Hopper.

Source: Shah et al. 2024, arXiv 2407.08608.
"""

import importlib

from torch import Tensor

from ...backends.reasons import hopper_reason
from ...spec import Case
from ._library import flash_attention, gpu_supports


def supports(case: Case) -> str | None:
    """Require 16 bits, a Hopper, heads of up to 256 channels in multiples of 8, and the library."""
    return (
        gpu_supports(case)
        or hopper_reason(case.capability)
        or case.libraries.problem("flash-attn 3")
    )


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    library = importlib.import_module("flash_attn_interface")
    return flash_attention(library.flash_attn_func, q_BLHd, k_BSHd, v_BSHd, scale)
