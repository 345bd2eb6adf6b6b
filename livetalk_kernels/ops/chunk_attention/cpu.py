"""``chunk_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

from ...backends.cpu import compiled, supports
from ...spec import Case
from .._attention import packed_keys
from . import empty_outputs

__all__ = ["run", "supports", "workspace"]

run = compiled("chunk_attention", empty_outputs)


def workspace(case: Case) -> int:
    """Count the bytes of keys and values, packed for the kernel."""
    B, S, H, d = (case.dims[letter] for letter in "BSHd")
    return packed_keys(B * H, d, S)
