"""``rms_norm`` in CUDA: a row in registers, packs of 16 bytes; see ``csrc/cuda/row_norm.cuh``."""

from ...backends.cuda import compiled, supports_rows
from ...spec import Case
from . import empty_outputs

run = compiled("rms_norm", empty_outputs)


def supports(case: Case) -> str | None:
    """Accept rows of whole packs on a GPU."""
    return supports_rows(case, "D")
