"""Facts about every kernel, and faults found in them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..backends.reasons import HOPPER
from ..gpus import SHARED_MEMORY
from ..inputs import Count
from .occupancy import PROCESSORS, warps_per_sm
from .sass import WIDE, Code

TARGET = "sm_90a"
# Generation -> its tensor-core instruction for 16 bits, and for FP8.
INSTRUCTIONS = {
    8: ("HMMA", "QMMA"),
    9: ("HGMMA", "QGMMA"),
    10: ("UTCHMMA", "UTCQMMA"),
    12: ("HMMA", "QMMA"),
}
# Triton's name of a dot's operand dtype -> index into the above.
_OPERANDS = {"bf16": 0, "f16": 0, "f8E4M3FN": 1, "f8E5M2": 1}
HALF_POINTERS, FP8_POINTERS = {"bf16", "fp16"}, {"fp8e4nv", "fp8e5"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One compiled kernel, or one that does not compile.

    Attributes:
        op: Name of the op; empty if a CUDA kernel's name does not contain it.
        backend: ``triton`` or ``cuda``.
        name: Name of the kernel; empty if unknown.
        cases: The op's cases that run it; ``#2`` marks a case's second variant of a kernel.
        error: Why there is no code; else empty.
        code: Facts from its machine code.
        stages: Software pipelining depth; None if the launch does not specify it.
        constants: Its numeric constants, such as tile sizes.
        dynamic_shared: Bytes of dynamic shared memory per block; None if set at launch.
        spills: Bytes of spill stores and spill loads; None if ptxas' log is not available.
        pointers: Dtypes of pointer arguments, in Triton's names.
        dots: Dtypes of its matrix products, named as in Triton's IR.
        warnings: Warnings of ptxas.
        seconds: Compile time; None if it was not compiled here.
        capability: Compute capability of the target GPU.
    """

    op: str
    backend: str
    name: str
    cases: tuple[str, ...] = ()
    error: str = ""
    code: Code | None = None
    stages: Count | None = None
    constants: Mapping[str, int] = field(default_factory=dict)
    dynamic_shared: Count | None = None
    spills: tuple[Count, Count] | None = None
    pointers: tuple[str, ...] = ()
    dots: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float | None = None
    capability: tuple[Count, Count] = HOPPER

    def __post_init__(self) -> None:
        """Reject a GPU whose limits are not known.

        Raises:
            ValueError: It is none of `PROCESSORS`.
        """
        if self.capability not in PROCESSORS:
            raise ValueError(f"capability is {self.capability}, of no GPU that is known here")

    @property
    def shared(self) -> int:
        """Bytes of shared memory per block, as far as known."""
        return (self.code.static_shared if self.code else 0) + (self.dynamic_shared or 0)

    @property
    def warps(self) -> int | None:
        """Warps resident on an SM; None if the block size is not known."""
        if self.code is None or self.code.threads is None:
            return None
        threads, registers = self.code.threads, self.code.registers
        return warps_per_sm(threads, registers, self.shared, self.capability)

    def __str__(self) -> str:
        """Format op, kernel and first case."""
        place = "/".join(part for part in (self.op, self.name) if part)
        return f"{place} ({self.cases[0]})" if self.cases else place


@dataclass(frozen=True, kw_only=True)
class Report:
    """All kernels, and the compilers used.

    Attributes:
        dtype: Dtype of the activations.
        date: Day of the report, such as ``2026-11-20``.
        commit: Of this repository.
        versions: Compiler -> its version.
        kernels: The kernels.
        notes: What is missing from the report, and why.
        target: Target that they are compiled for.
    """

    dtype: str
    date: str
    commit: str
    versions: dict[str, str]
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...] = ()
    target: str = TARGET


def faults(kernel: Kernel) -> Iterator[str]:
    """Yield what no kernel of ours should have, one line each."""
    if kernel.error:
        yield f"does not compile: {kernel.error}"
    if kernel.code is None:
        return
    code = kernel.code
    if kernel.warps == 0:
        yield (
            f"fits no SM: {code.registers} registers, {code.threads} threads, "
            f"{kernel.shared} bytes of shared memory ({SHARED_MEMORY[kernel.capability]} at most)"
        )
    if spilled := sum(kernel.spills or ()):
        yield f"spills {spilled} bytes"
    elif code.local:
        yield f"{code.local} accesses of local memory"
    for dtype in kernel.dots:
        kind = _OPERANDS.get(dtype)
        if kind is None:
            continue
        wanted = INSTRUCTIONS[kernel.capability[0]][kind]
        if wanted not in code.tensor_cores:
            yield f"multiplies {dtype} without {wanted}"
    if not _is_wide(code.widest_load):
        yield f"loads {code.widest_load} bits at most"
    # A wide load of 16-bit values is 64 bits once they are FP8.
    narrowing = not (
        HALF_POINTERS.isdisjoint(kernel.pointers) or FP8_POINTERS.isdisjoint(kernel.pointers)
    )
    if not _is_wide(code.widest_store) and not (narrowing and code.widest_store == "64"):
        yield f"stores {code.widest_store} bits at most"
    yield from (f"compiler: {text}" for text in kernel.warnings)


def _is_wide(widest: str) -> bool:
    return not widest.isdecimal() or int(widest) >= WIDE


def as_json(report: Report) -> dict[str, Any]:
    """Convert a report to plain values, including derived figures."""
    kernels = []
    for kernel in report.kernels:
        entry = asdict(kernel)
        if kernel.code is not None:
            share, most = kernel.code.wide_share, PROCESSORS[kernel.capability].warps
            entry["derived"] = {
                "warps_per_sm": kernel.warps,
                "occupancy": None if kernel.warps is None else kernel.warps / most,
                "widest_load": kernel.code.widest_load,
                "widest_store": kernel.code.widest_store,
                "wide_share": None if share is None else round(share, 4),
            }
        entry["faults"] = list(faults(kernel))
        kernels.append(entry)
    return {**asdict(report), "kernels": kernels}
