"""``merge_lse`` compiled; see ``csrc/cpu/merge_lse.cpp``."""

from ...backends.cpu import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("merge_lse", empty_outputs)
