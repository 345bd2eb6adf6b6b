"""What is known of every kernel, and what is wrong with it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..inputs import Count
from .occupancy import SHARED_BLOCK, WARPS, warps_per_sm
from .sass import WIDE, Code

TARGET = "sm_90a"
# Triton's name of a dot's operands -> the tensor-core instruction that Hopper has for them.
INSTRUCTION = dict.fromkeys(("bf16", "f16"), "HGMMA") | dict.fromkeys(
    ("f8E4M3FN", "f8E5M2"), "QGMMA"
)
HALF_POINTERS, FP8_POINTERS = {"bf16", "fp16"}, {"fp8e4nv", "fp8e5"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One compiled kernel, or one that does not compile.

    Attributes:
        op: Name of the op; empty where a CUDA kernel's name has none in it.
        backend: ``triton`` or ``cuda``.
        name: Name of the kernel; empty where it is not known.
        cases: The op's cases that run it; ``#2`` marks a case's second version of one kernel.
        error: Why there is no code; empty where there is.
        code: What its machine code says.
        stages: Depth of its software pipelines; None where the launch does not say it.
        constants: Its constants that are numbers, such as the sizes of its tiles.
        dynamic_shared: Bytes of dynamic shared memory of a block; None where the launch sets it.
        spills: Bytes of spill stores and spill loads; None where ptxas' log is not at hand.
        pointers: Dtypes of the arguments that are pointers, in Triton's names.
        dots: Dtypes that it multiplies as matrices, in the names of Triton's IR.
        warnings: What ptxas warned of.
        seconds: Seconds to compile; None where it was not compiled here.
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

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, as far as they are known."""
        return (self.code.static_shared if self.code else 0) + (self.dynamic_shared or 0)

    @property
    def warps(self) -> int | None:
        """Warps that an SM holds at a time, of 64; None where the size of a block is not known."""
        if self.code is None or self.code.threads is None:
            return None
        return warps_per_sm(self.code.threads, self.code.registers, self.shared)

    def __str__(self) -> str:
        """Op, kernel and first case."""
        place = "/".join(part for part in (self.op, self.name) if part)
        return f"{place} ({self.cases[0]})" if self.cases else place


@dataclass(frozen=True, kw_only=True)
class Report:
    """All kernels, and what compiled them.

    Attributes:
        dtype: Of the activations.
        date: Day of the report, as ``2026-11-20``.
        commit: Of this repository.
        versions: Compiler -> its version.
        kernels: The kernels.
        notes: What is missing from the report, and why.
    """

    dtype: str
    date: str
    commit: str
    versions: dict[str, str]
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...] = ()


def faults(kernel: Kernel) -> Iterator[str]:
    """What no kernel of ours should have: each a line that says what."""
    if kernel.error:
        yield f"does not compile: {kernel.error}"
    if kernel.code is None:
        return
    code = kernel.code
    if kernel.warps == 0:
        yield (
            f"fits no SM: {code.registers} registers, {code.threads} threads, "
            f"{kernel.shared} bytes of shared memory ({SHARED_BLOCK} at most)"
        )
    if spilled := sum(kernel.spills or ()):
        yield f"spills {spilled} bytes"
    elif code.local:
        yield f"{code.local} accesses of local memory"
    for dtype in kernel.dots:
        wanted = INSTRUCTION.get(dtype)
        if wanted and wanted not in code.tensor_cores:
            yield f"multiplies {dtype} without {wanted}"
    if code.widest_load not in (WIDE, "TMA", ""):
        yield f"loads {code.widest_load} bits at most"
    # What one wide load brings in 16 bits is 64 bits of FP8.
    narrowing = not (
        HALF_POINTERS.isdisjoint(kernel.pointers) or FP8_POINTERS.isdisjoint(kernel.pointers)
    )
    if code.widest_store not in (WIDE, "TMA", "", "64" if narrowing else WIDE):
        yield f"stores {code.widest_store} bits at most"
    yield from (f"compiler: {text}" for text in kernel.warnings)


def as_json(report: Report) -> dict[str, Any]:
    """A report for machines, with what follows from its numbers."""
    kernels = []
    for kernel in report.kernels:
        entry = asdict(kernel)
        if kernel.code is not None:
            share = kernel.code.wide_share
            entry["derived"] = {
                "warps_per_sm": kernel.warps,
                "occupancy": None if kernel.warps is None else kernel.warps / WARPS,
                "widest_load": kernel.code.widest_load,
                "widest_store": kernel.code.widest_store,
                "wide_share": None if share is None else round(share, 4),
            }
        entry["faults"] = list(faults(kernel))
        kernels.append(entry)
    return {"target": TARGET, **asdict(report), "kernels": kernels}
