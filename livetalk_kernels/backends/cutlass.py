"""The FP8 linears on CUTLASS: what they need of the build, the GPU and the sizes.

They are part of ``_C_cuda.so`` if the package nvidia-cutlass was installed when it was built: they
are made of its headers, see ``csrc/cuda/sm90``. They are ``torch.ops.livetalk.<op>_cutlass``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import cuda, operators
from .reasons import device_reason, dtype_reason, gpu_reason, hopper_reason

if TYPE_CHECKING:
    from ..spec import Case

MEND = "pip install --no-deps nvidia-cutlass, then `make cuda`"
OPERATOR = "fp8_gemm_cutlass"  # that tells whether the library has them
TMA_VALUES = 16  # FP8 values in the 16 bytes that rows are multiples of


def missing() -> str | None:
    """None once the kernels are loaded, else why they cannot be."""
    reason = cuda.missing()
    if reason is None and not hasattr(torch.ops.livetalk, OPERATOR):
        return f"the CUDA kernels were built without CUTLASS; {MEND}"
    return reason


def compiled(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Take an op's operator of this library; see `operators.compiled`."""
    missing()
    return operators.compiled(f"{op}_cutlass", fake)


def supports_linear(case: "Case", multiple: int) -> str | None:
    """None, or why a linear with bf16 results cannot run.

    Args:
        case: What will be run.
        multiple: What N is a multiple of.
    """
    reason = device_reason(case.device, "cuda") or dtype_reason(case.dtype, (torch.bfloat16,))
    if reason is not None:
        return reason
    for letter, count in {"K": TMA_VALUES, "N": multiple}.items():
        size = case.dims.get(letter, count)
        if size == 0 or size % count:
            return f"needs {letter} in multiples of {count}, not {size}"
    return (
        hopper_reason(case.capability)
        or case.libraries.problem("cutlass kernels")
        or gpu_reason(case)
    )
