"""``rms_norm_silu`` compiled; see ``csrc/cpu/rms_norm_silu.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("rms_norm_silu", empty_outputs)
