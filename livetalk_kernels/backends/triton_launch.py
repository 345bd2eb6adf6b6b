"""Launches Triton kernels, and describes launches so that they compile for an absent GPU.

A Triton backend describes its work as `Launch` objects, made from a call's tensors by a pure
function ``launches(...)``. ``run`` executes them; ``livetalk inspect`` makes the same objects from
tensors on the ``meta`` device and compiles them ahead of time, so that it reports on what
actually runs.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..spec import Case, as_tuple
from .operators import register_python
from .reasons import (
    ADA,
    HOPPER,
    capability_reason,
    device_reason,
    dtype_reason,
    shared_memory_reason,
)

INSTALL = "pip install triton"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MIN_CAPABILITY = (8, 0)


def supports(case: Case) -> str | None:
    """Check what every Triton backend needs: an NVIDIA GPU, or the interpreter on a CPU."""
    reason = case.libraries.problem("triton") or dtype_reason(case.dtype, DTYPES)
    if reason is not None:
        return reason
    if case.device.type == "cpu":
        if interpreted():
            return None
        return "needs a GPU; on a CPU set TRITON_INTERPRET=1 to run it in Triton's interpreter"
    return device_reason(case.device, "cuda") or capability_reason(case, MIN_CAPABILITY)


def supports_fp8(case: Case) -> str | None:
    """Also check for instructions that round to FP8, which older GPUs lack."""
    reason = supports(case)
    if reason is None and case.device.type == "cuda":
        reason = capability_reason(case, ADA)
        return reason and f"{reason}; choose --precision exact there"
    return reason


def supports_tma(case: Case, shared_memory: int) -> str | None:
    """Also check for TMA and FP8 products, and for shared memory.

    Args:
        case: The problem.
        shared_memory: Bytes per block.
    """
    reason = supports(case)
    if reason is None and case.device.type == "cuda":
        return capability_reason(case, HOPPER) or shared_memory_reason(case, shared_memory)
    return reason


def supports_dot(case: Case) -> str | None:
    """Also check matrix products, which the interpreter gets wrong in bf16."""
    reason = supports(case)
    if reason is None and case.device.type == "cpu" and case.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bf16 matrices wrongly; use fp32"
    return reason


def interpreted() -> bool:
    """Return whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    if importlib.util.find_spec("triton") is None:  # it may be only assumed
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        kernel: The ``triton.jit`` function.
        grid: Number of programs along each axis.
        arguments: Parameter -> tensor, ``TensorDescriptor`` or number; a constant if the kernel
            annotates it with ``tl.constexpr``.
        warps: Warps per program.
        stages: Software pipelining depth.
        options: Further options for Triton's compiler, such as ``maxnreg``.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def compiler_options(self) -> dict[str, Any]:
        """Return the compiler options; Triton fuses multiply-adds by default only up to 3.9."""
        chosen = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**chosen, **self.options}

    def __call__(self) -> None:
        """Launch on the current device's current stream; `register` sets the device."""
        self.kernel[self.grid](**self.arguments, **self.compiler_options())


def split_width(width: int) -> tuple[int, int]:
    """Cover a row with two power-of-two blocks, which fit the model's widths without waste.

    5120 = 4096 + 1024, 1536 = 1024 + 512, 96 = 64 + 32; for other widths the second block is too
    long and masks its end.

    Args:
        width: Length of the row, at least 1.

    Returns:
        Sizes of both blocks; the second is 0 if the first covers the row.
    """
    main = 1 << (width.bit_length() - 1)
    rest = width - main
    return main, 1 << (rest - 1).bit_length() if rest else 0


def register(
    op: str,
    empty_outputs: Callable[..., Any],
    launches: Callable[..., list[Launch]],
    *,
    backend: str = "triton",
) -> Callable[..., Any]:
    """Create the operator ``livetalk::<op>_<backend>`` from the launches of an op's Triton backend.

    Args:
        op: Name of the op.
        empty_outputs: From the op's contract: allocates the outputs of a call.
        launches: ``launches(outputs, *arguments, **keywords)`` returns the launches that fill
            them, in order; ``outputs`` is a tuple.
        backend: Name of the backend.

    Returns:
        The operator: the backend's ``run``.
    """

    def run(*arguments: Any, **keywords: Any) -> Any:
        outputs = empty_outputs(*arguments, **keywords)
        filled = as_tuple(outputs)
        index = filled[0].get_device()  # -1 on a CPU
        # Triton launches on the current device, whichever the tensors are on. Querying it costs a
        # third of a guard around every call.
        if index < 0 or index == torch.cuda.current_device():
            launch_all(filled, arguments, keywords)
        else:
            with torch.cuda.device(index):
                launch_all(filled, arguments, keywords)
        return outputs

    def launch_all(
        filled: tuple[Tensor, ...], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        for launch in launches(filled, *arguments, **keywords):
            launch()

    return register_python(op, backend, run, empty_outputs)
