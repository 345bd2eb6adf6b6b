"""``rms_norm_rope`` in CUDA: q and k in one launch; see ``csrc/cuda/row_norm.cuh``."""

from ...backends.cuda import compiled, supports_rows
from ...spec import Case
from . import empty_outputs

run = compiled("rms_norm_rope", empty_outputs)


def supports(case: Case) -> str | None:
    """Accept heads of whole packs on a GPU."""
    return supports_rows(case, "d")
