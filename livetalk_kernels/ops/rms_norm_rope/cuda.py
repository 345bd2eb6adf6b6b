"""``rms_norm_rope`` in CUDA: q and k in one launch; see ``csrc/cuda/row_norm.cuh``.

Run on a CPU by emulation only; untested on a GPU.
"""

from ...backends.cuda import compiled, supports_rows
from ...spec import Case
from . import empty_outputs

run = compiled("rms_norm_rope", empty_outputs)


def supports(case: Case) -> str | None:
    """Heads of whole packs on a GPU."""
    return supports_rows(case, "d")
