"""How Triton kernels are launched, and compiled for a GPU that is not here.

A Triton backend describes its work as `Launch` objects, made from the tensors of a call by a pure
function ``launches(...)``. ``run`` executes them; ``livetalk inspect`` makes the same objects from
tensors on the ``meta`` device and compiles them ahead of time, so that what it reports is what
runs.
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
    """What every Triton backend asks: an NVIDIA GPU, or the interpreter on a CPU."""
    reason = case.libraries.problem("triton") or dtype_reason(case.dtype, DTYPES)
    if reason is not None:
        return reason
    if case.device.type == "cpu":
        if interpreted():
            return None
        return "needs a GPU; on a CPU set TRITON_INTERPRET=1 to run it in Triton's interpreter"
    return device_reason(case.device, "cuda") or capability_reason(case, MIN_CAPABILITY)


def supports_fp8(case: Case) -> str | None:
    """The same for kernels that round to FP8, for which older GPUs have no instruction."""
    reason = supports(case)
    if reason is None and case.device.type == "cuda":
        reason = capability_reason(case, ADA)
        return reason and f"{reason}; choose --precision exact there"
    return reason


def supports_tma(case: Case, shared_memory: int) -> str | None:
    """The same for kernels that use TMA, or multiply FP8 on a GPU.

    Args:
        case: What will be run.
        shared_memory: Bytes that a block takes.
    """
    reason = supports(case)
    if reason is None and case.device.type == "cuda":
        return capability_reason(case, HOPPER) or shared_memory_reason(case, shared_memory)
    return reason


def supports_dot(case: Case) -> str | None:
    """The same for kernels with matrix products, which the interpreter gets wrong in bf16."""
    reason = supports(case)
    if reason is None and case.device.type == "cpu" and case.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bf16 matrices wrongly; use fp32"
    return reason


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1)."""
    if importlib.util.find_spec("triton") is None:  # it may be supposed
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of a Triton kernel.

    Attributes:
        kernel: The ``triton.jit`` function.
        grid: Number of programs along each axis.
        arguments: Parameter -> tensor, ``TensorDescriptor``, number, or constant where the
            kernel's annotation is ``tl.constexpr``.
        warps: Warps of a program.
        stages: Depth of software pipelines.
        options: Further options of Triton's compiler, such as ``maxnreg``.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    warps: int = 4
    stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def compiler_options(self) -> dict[str, Any]:
        """Options of Triton's compiler; fusing multiply-add is its default only up to 3.9."""
        chosen = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return {**chosen, **self.options}

    def __call__(self) -> None:
        """Run it on the current device's current stream; `register` sees to the device."""
        self.kernel[self.grid](**self.arguments, **self.compiler_options())


def split_width(width: int) -> tuple[int, int]:
    """Cover a row with two blocks of powers of two: the model's widths fit without waste.

    5120 = 4096 + 1024, 1536 = 1024 + 512, 96 = 64 + 32; a width that is no such sum gets a second
    block that is too long, and masks its end.

    Args:
        width: Length of the row, at least 1.

    Returns:
        Sizes of both blocks; the second is 0 where the first covers the row.
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
    """Make the operator ``livetalk::<op>_<backend>`` of what an op's Triton backend launches.

    Args:
        op: Name of the op.
        empty_outputs: Of the op's contract: the outputs of a call, not filled.
        launches: ``launches(outputs, *arguments, **keywords)`` gives what fills them, in order;
            ``outputs`` is a tuple.
        backend: Name of the backend.

    Returns:
        The operator: the backend's ``run``.
    """

    def run(*arguments: Any, **keywords: Any) -> Any:
        outputs = empty_outputs(*arguments, **keywords)
        filled = as_tuple(outputs)
        index = filled[0].get_device()  # -1 on a CPU
        # Triton launches on the current device, whichever the tensors are on. Asking which that is
        # costs a third of a guard around every call.
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
