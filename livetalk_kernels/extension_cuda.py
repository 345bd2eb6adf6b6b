"""The compiled CUDA kernels: load ``_C_cuda.so``, or say why not.

``make cuda`` builds it wherever there is nvcc; it loads only into a torch that is built for CUDA.
Its kernels are then ``torch.ops.livetalk.<op>_cuda``.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from .extension import FOLDER, load_library
from .reasons import capability_reason, cuda_reason, device_reason, dtype_reason
from .spec import Case
from .torch_ops import register_fake

MEND = "build it with `make cuda` (needs nvcc)"
PACK_BYTES = 16
LANES, PACKS = 32, 4  # at most, of one pixel in pixel_norm.cu
MIN_CAPABILITY = (8, 0)
MAX_CHANNELS: Mapping[torch.dtype, int] = MappingProxyType(
    {
        dtype: LANES * PACKS * PACK_BYTES // dtype.itemsize
        for dtype in (torch.float32, torch.bfloat16)
    }
)


@functools.cache
def missing() -> str | None:
    """None once the kernels are loaded, else why they cannot be."""
    library = FOLDER / "_C_cuda.so"
    if not library.is_file():
        return f"the CUDA kernels were not built; {MEND}"
    return cuda_reason() or load_library(library, MEND)


def register(op: str, fake: Callable[..., Any]) -> None:
    """Give ``livetalk::<op>_cuda`` its fake implementation, where the extension is loaded.

    Args:
        op: Name of the op.
        fake: Empty outputs for a call's arguments.
    """
    if missing() is None:
        register_fake(f"{op}_cuda", fake)


def supports_rows(case: Case, letter: str) -> str | None:
    """What a kernel for rows of packs asks: a GPU, fp32 or bf16, rows of 16-byte packs.

    Args:
        case: What will be run.
        letter: Letter of the size that consists of whole packs.
    """
    reason = device_reason(case.device, "cuda") or dtype_reason(case.dtype, MAX_CHANNELS)
    if reason is not None:
        return reason
    count = PACK_BYTES // case.dtype.itemsize
    if case.dims.get(letter, 0) % count:
        return f"needs {letter} in multiples of {count}, not {case.dims[letter]}"
    return case.libraries.problem("cuda kernels") or capability_reason(case, MIN_CAPABILITY)
