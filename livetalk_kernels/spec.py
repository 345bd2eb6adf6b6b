"""What an op declares about itself: its cases, cost and preferred backends.

Every folder ``ops/<op>/`` defines an ``OP = OpSpec(...)`` in its ``__init__.py``. Dispatch, tests,
benchmarks and the command line know an op through this object alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from .backends.libraries import INSTALLED, Libraries
from .gpus import Gpu
from .precision import dtype_name

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call of an op."""

Sizes: TypeAlias = tuple[dict[str, int], dict[str, Any]]
"""Dims and options of a case."""

LINEARS, ATTENTION, CROSS, NORMS = "linears", "attention", "cross", "norms"
CONVOLUTIONS, ACTIVATIONS = "convolutions", "activations"
KINDS = (LINEARS, ATTENTION, CROSS, NORMS, CONVOLUTIONS)
"""Parts of a stage that ops make up; ``cross``: attention to context that no step changes."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem that a backend is queried, tested or timed with.

    Attributes:
        op: Name of the op.
        device: Device of the tensors.
        dtype: Dtype of the model's activations: of the inputs, or of dequantised FP8 operands.
        dims: Sizes by the letters of the op's shape legend, such as ``{"L": 1512, "D": 5120}``.
            Only some are known when a model is built, so backends read them with ``.get``.
        options: Whatever else selects a variant, such as ``{"layout": "head"}``.
        name: Name of a representative case; empty in dispatch.
        large: Of a real model's size: benchmarked, not tested.
        gpu: GPU that is asked about instead of the one present.
        libraries: Installed or assumed libraries.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    dims: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    large: bool = False
    gpu: Gpu | None = None
    libraries: Libraries = INSTALLED

    def __post_init__(self) -> None:
        """Reject invalid sizes."""
        for key, size in self.dims.items():
            if size < 0:
                raise ValueError(f"{self.op}: dimension {key} is {size}; sizes are 0 or more")

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of the GPU; None without one."""
        if self.gpu is not None:
            return self.gpu.capability
        if self.device.type != "cuda" or not torch.cuda.is_available():
            return None
        return torch.cuda.get_device_capability(self.device)

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that a block may opt in to; requires a GPU."""
        if self.gpu is not None:
            return self.gpu.shared_memory
        found = torch.cuda.get_device_properties(self.device)
        # Torch's stubs lack it, and so do GPUs of other vendors.
        return int(getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block))

    def at(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        large: bool = False,
        **dims: int,
    ) -> "Case":
        """Return a case for the same op, device and dtype at another, named size."""
        return dataclasses.replace(self, name=name, dims=dims, options=options or {}, large=large)

    def __str__(self) -> str:
        """Return a short form for test names and tables."""
        return f"{self.op}-{self.name or 'case'}-{dtype_name(self.dtype)}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Least work of a case: what an ideal kernel must compute and move.

    Attributes:
        flops: Floating-point operations; a multiply-add counts as two.
        bytes: Bytes read and written, counting every input and output once.
    """

    flops: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Required accuracy of one result; by default the float rule of the numerics contract.

    Attributes:
        calc_diff: Bound on ``calc_diff`` that replaces the float rule, for results that
            inherently include FP8 rounding.
        half_slack: Absolute error allowed on top of the float rule where the inputs are 16-bit.
            For fp32 outputs that are not results in themselves, such as an LSE.
        factor: How many times the plain formula's error the float rule allows.
    """

    calc_diff: float | None = None
    half_slack: float = 0.0
    factor: float = 2.0


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return an op's result as a tuple, even if it is a single tensor."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Contract of an op, for dispatch, tests, benchmarks and help texts.

    Attributes:
        name: Name of the op and of its folder.
        summary: One line for tables and help.
        kind: One of `KINDS`.
        function: The public function; it takes ``backend=`` in addition to the backends' arguments.
        preference: Target -> backends that ``auto`` tries there, best first; ``reference`` follows
            them. A target is a device type (``cuda``) or, taking precedence over it, a GPU
            generation or compute capability (``cuda 9``, ``cuda 9.0``). A backend that is not
            listed runs only when named.
        cases: ``cases(device, dtype)`` returns representative cases, tiny ones and the model's.
        make_inputs: ``make_inputs(case, generator)`` returns the arguments of a call.
        cost: ``cost(case)`` returns the least work.
        read: ``read(*arguments, **keywords)`` returns dims and options of the call's case: the
            inverse of ``make_inputs``, except for the strides of rows within a wider tensor.
        dtypes: Activation dtypes that every backend is tested with, where it runs.
        values: Outputs -> tensors to compare with ``truth``; FP8 ops dequantise here.
        truth: Exact results for arguments in fp64. None: ``reference`` on those arguments.
        bounds: Required accuracy of each of ``values``. Empty: the float rule for all.
        approximate_bounds: The same for approximate backends. Empty: ``bounds`` apply.
    """

    name: str
    summary: str
    kind: str
    function: Callable[..., Any]
    preference: Mapping[str, tuple[str, ...]]
    cases: Callable[[torch.device, torch.dtype], tuple[Case, ...]]
    make_inputs: Callable[[Case, Generator], Arguments]
    cost: Callable[[Case], Cost]
    read: Callable[..., Sizes]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    values: Callable[[Any], tuple[Tensor, ...]] = as_tuple
    truth: Callable[..., Any] | None = None
    bounds: tuple[Bound, ...] = ()
    approximate_bounds: tuple[Bound, ...] = ()

    def bounds_of(self, *, approximate: bool) -> tuple[Bound, ...]:
        """Return the required accuracy of each result of an exact or approximate backend."""
        return (approximate and self.approximate_bounds) or self.bounds

    def preferred(self, case: Case) -> tuple[str, ...]:
        """List all backends that ``auto`` tries for a case, best first."""
        where = [case.device.type]
        if case.capability is not None:
            major, minor = case.capability
            where = [f"cuda {major}.{minor}", f"cuda {major}", "cuda"]
        names = next((self.preference[key] for key in where if key in self.preference), ())
        return (*names, "reference")


def random_tensor(
    case: Case,
    generator: Generator,
    *shape: int,
    scale: float = 1.0,
    offset: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw a normal random tensor for the case's device, on the CPU, so equal on every device.

    On the ``meta`` device nothing is drawn.
    """
    if case.device.type == "meta":
        return torch.empty(shape, dtype=dtype or case.dtype, device="meta")
    values = torch.randn(*shape, generator=generator) * scale + offset
    return values.to(device=case.device, dtype=dtype or case.dtype)
