"""The FP8 linears on CUTLASS: what they need from the build, the GPU and the sizes.

``_C_cuda.so`` includes them if the package nvidia-cutlass, whose headers they use, was installed
when it was built; see ``csrc/cuda/sm90``. They are ``torch.ops.livetalk.<op>_cutlass``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import cuda, operators
from .reasons import device_reason, dtype_reason, gpu_reason, hopper_reason

if TYPE_CHECKING:
    from ..spec import Case

MEND = "pip install --no-deps nvidia-cutlass, then `make cuda`"
OPERATOR = "fp8_gemm_cutlass"  # its presence shows that the library has them
TMA_VALUES = 16  # FP8 values in 16 bytes, the granularity of rows


def missing() -> str | None:
    """Return None once the kernels are loaded, else why they cannot be."""
    reason = cuda.missing()
    if reason is None and not hasattr(torch.ops.livetalk, OPERATOR):
        return f"the CUDA kernels were built without CUTLASS; {MEND}"
    return reason


def compiled(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return an op's operator from this library; see `operators.compiled`."""
    missing()
    return operators.compiled(f"{op}_cutlass", fake)


def supports_linear(case: "Case", multiple: int) -> str | None:
    """Return None, or why a linear with bf16 results cannot run.

    Args:
        case: The problem.
        multiple: What N must be a multiple of.
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
