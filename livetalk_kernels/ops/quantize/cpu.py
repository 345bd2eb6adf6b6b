"""``quantize`` compiled; see ``csrc/cpu/quantize.cpp``."""

from torch import Tensor

from ...backends.cpu import compiled, supports
from . import count_blocks, empty_outputs, laid_out

__all__ = ["run", "supports"]

_run = compiled("quantize", empty_outputs)


def run(x: Tensor, *, block: int | None = None, m_major: bool = False) -> tuple[Tensor, Tensor]:
    """See the contract."""
    count_blocks(x.shape[-1], block)  # rejects a block that does not divide the row
    q, scale = _run(x, block=block)
    return q, laid_out(scale, m_major=m_major)
