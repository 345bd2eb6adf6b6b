"""``add_norm`` compiled; see ``csrc/cpu/add_norm.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("add_norm", empty_outputs)
