"""``add_norm`` in CUDA: a row in registers, packs of 16 bytes; see ``csrc/cuda/row_norm.cuh``.

Run on a CPU by emulation only; untested on a GPU.
"""

from ...backends.cuda import compiled, supports_rows
from ...spec import Case
from . import empty_outputs

run = compiled("add_norm", empty_outputs)


def supports(case: Case) -> str | None:
    """Rows of whole packs on a GPU."""
    return supports_rows(case, "D")
