"""How many blocks of a kernel fit an SM of Hopper (compute capability 9.0).

Source: CUDA Programming Guide, "Compute Capabilities" (table of technical specifications), and the
allocation granularities of CUDA's occupancy calculator.
"""

REGISTERS = 65536  # of an SM, 32 bits each
QUADRANTS = 4  # of an SM; a warp lives in one, with a fourth of the registers
REGISTER_STEP = 256  # a warp gets a multiple of it
WARP = 32
WARPS = 64
BLOCKS = 32
SHARED = 228 * 1024  # bytes of an SM
SHARED_BLOCK = 227 * 1024  # bytes that a block may ask for
SHARED_RESERVED = 1024  # bytes that the system takes of every block
SHARED_STEP = 128


def blocks_per_sm(threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at a time; 0 where not even one fits.

    Args:
        threads: Threads of a block.
        registers: Registers of a thread.
        shared: Bytes of static and dynamic shared memory of a block.
    """
    warps = _ceil(threads, WARP)
    if shared > SHARED_BLOCK:
        return 0
    by_shared = SHARED // (_ceil(shared + SHARED_RESERVED, SHARED_STEP) * SHARED_STEP)
    per_warp = _ceil(max(registers, 1) * WARP, REGISTER_STEP) * REGISTER_STEP
    by_registers = QUADRANTS * (REGISTERS // QUADRANTS // per_warp) // warps
    return min(BLOCKS, WARPS // warps, by_registers, by_shared)


def warps_per_sm(threads: int, registers: int, shared: int) -> int:
    """Warps that an SM holds at a time, of 64; arguments as for ``blocks_per_sm``."""
    return blocks_per_sm(threads, registers, shared) * _ceil(threads, WARP)


def _ceil(value: int, step: int) -> int:
    return -(-value // step)
