"""``context_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

from ...extension import compiled, supports
from . import empty_outputs

__all__ = ["run", "supports"]

run = compiled("context_attention", empty_outputs)
