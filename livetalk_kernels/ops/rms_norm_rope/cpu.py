"""``rms_norm_rope`` compiled; see ``csrc/cpu/rms_norm_rope.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("rms_norm_rope", empty_outputs)
