"""Computes how many blocks of a kernel fit on an SM, of Hopper (compute capability 9.0) or others.

Source: CUDA Programming Guide, "Compute Capabilities" (table of technical specifications), and the
allocation granularities of CUDA's occupancy calculator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..backends.reasons import HOPPER
from ..gpus import SHARED_MEMORY

REGISTERS = 65536  # per SM, 32 bits each
QUADRANTS = 4  # per SM; a warp stays in one, which has a quarter of the registers
REGISTER_STEP = 256  # allocation granularity per warp
WARP = 32
SHARED_RESERVED = 1024  # bytes per block that the system reserves
SHARED_STEP = 128


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Limits of an SM.

    Attributes:
        warps: Resident warps.
        blocks: Resident blocks.
        shared: Bytes of shared memory.
    """

    warps: int
    blocks: int
    shared: int


_LARGE = Processor(warps=64, blocks=32, shared=228 << 10)
_SMALL = Processor(warps=48, blocks=24, shared=100 << 10)
PROCESSORS: Mapping[tuple[int, int], Processor] = MappingProxyType(
    {
        (8, 0): Processor(warps=64, blocks=32, shared=164 << 10),
        (8, 9): _SMALL,
        HOPPER: _LARGE,
        (10, 0): _LARGE,
        (12, 0): _SMALL,
    }
)
"""Compute capability -> its SM."""


def blocks_per_sm(
    threads: int, registers: int, shared: int, capability: tuple[int, int] = HOPPER
) -> int:
    """Compute how many blocks are resident on an SM; 0 if not even one fits.

    Args:
        threads: Threads per block.
        registers: Registers per thread.
        shared: Bytes of static and dynamic shared memory per block.
        capability: Compute capability of the GPU, one of `PROCESSORS`.
    """
    processor = PROCESSORS[capability]
    warps = _ceil(threads, WARP)
    if shared > SHARED_MEMORY[capability]:
        return 0
    by_shared = processor.shared // (_ceil(shared + SHARED_RESERVED, SHARED_STEP) * SHARED_STEP)
    per_warp = _ceil(max(registers, 1) * WARP, REGISTER_STEP) * REGISTER_STEP
    by_registers = QUADRANTS * (REGISTERS // QUADRANTS // per_warp) // warps
    return min(processor.blocks, processor.warps // warps, by_registers, by_shared)


def warps_per_sm(
    threads: int, registers: int, shared: int, capability: tuple[int, int] = HOPPER
) -> int:
    """Compute how many warps are resident on an SM; arguments as for ``blocks_per_sm``."""
    return blocks_per_sm(threads, registers, shared, capability) * _ceil(threads, WARP)


def _ceil(value: int, step: int) -> int:
    return -(-value // step)
