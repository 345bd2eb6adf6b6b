"""``rms_norm`` compiled; see ``csrc/cpu/rms_norm.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("rms_norm", empty_outputs)
