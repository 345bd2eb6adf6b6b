"""``add_norm_quant`` compiled; see ``csrc/cpu/add_norm_quant.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("add_norm_quant", empty_outputs)
