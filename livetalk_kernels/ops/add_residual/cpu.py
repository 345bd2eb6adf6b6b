"""``add_residual`` compiled; see ``csrc/cpu/add_residual.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("add_residual", empty_outputs)
