"""``audio_attention`` compiled; see ``csrc/cpu/attention.cpp``."""

from ...backends.cpu import compiled, supports
from ...spec import Case
from .._attention import packed_keys
from . import empty_outputs

__all__ = ["run", "supports", "workspace"]

run = compiled("audio_attention", empty_outputs)


def workspace(case: Case) -> int:
    """Count the bytes of keys and values, packed for the kernel."""
    B, L, N, S, H, d = (case.dims[letter] for letter in "BLNSHd")
    offset = case.options.get("token_offset", 0)
    frames = -(-(offset + L) // N) - offset // N if L else 0
    return packed_keys(B * H * frames, d, S)
