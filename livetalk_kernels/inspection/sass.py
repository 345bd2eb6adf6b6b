"""Reads machine code: resources and instructions of every kernel in a cubin."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Annotated, Any

from ..inputs import Count, Range
from .loops import Instruction, find_main_loops
from .occupancy import SHARED_RESERVED
from .tools import find_tool, run_tool

HOPPER_CORES = ("HGMMA", "QGMMA", "IGMMA", "BGMMA")
BLACKWELL_CORES = ("UTCHMMA", "UTCQMMA", "UTCIMMA")
TENSOR_CORES = (*HOPPER_CORES, "HMMA", "QMMA", "IMMA", "DMMA", *BLACKWELL_CORES)
TMA_LOADS = ("UTMALDG", "UBLKCP")
TMA_STORES = ("UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")
WIDE = 128  # bits per thread and access; Blackwell also has wider ones
_BITS = {"U8": "8", "S8": "8", "U16": "16", "S16": "16"}
_BITS |= {bits: bits for bits in ("64", "128", "256")}
_WIDTHS = {"32", *_BITS.values()}
_LOADS, _STORES, _COPIES, _LOCAL = ("LDG", "LD"), ("STG", "ST"), ("LDGSTS",), ("LDL", "STL")

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?\w+)\s+)?([A-Z][A-Z0-9]*)((?:\.\w+)*)\s*([^;]*)",
    re.MULTILINE,
)
_RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\w+) SHARED:(\d+)")
_INFO = re.compile(r"^\.nv\.info\.(\S+)\n(.*?)(?=^\.\S|\Z)", re.MULTILINE | re.DOTALL)
_THREADS = re.compile(
    r"EIATTR_(?:REQNTID|MAX_THREADS)\s+Format:\s+\S+\s+Value:((?:\s+0x[0-9a-f]+){3})"
)


@dataclass(frozen=True, kw_only=True)
class Code:
    """One kernel's machine code.

    Attributes:
        registers: Registers per thread.
        stack: Bytes of stack per thread; None if the compiler does not know.
        static_shared: Bytes of static shared memory per block.
        threads: Threads per block as required or bounded by the code; None if it does neither.
        tensor_cores: Instruction -> number of occurrences.
        tma: The same for bulk copies between global and shared memory.
        loads: Width in bits -> number of loads from global memory.
        stores: The same for stores to global memory.
        copies: The same for asynchronous copies to shared memory (LDGSTS).
        local: Loads and stores of local memory, which spills and indexed arrays use.
        barriers: Barriers of all warps of a block per step of main loops (see `loops`).
        exposed: Loads of a last block after its main loop, where nothing hides them.
    """

    registers: Count
    stack: Count | None
    static_shared: Count
    threads: Annotated[int, Range(1, 1024)] | None
    tensor_cores: dict[str, Count] = field(default_factory=dict)
    tma: dict[str, Count] = field(default_factory=dict)
    loads: dict[str, Count] = field(default_factory=dict)
    stores: dict[str, Count] = field(default_factory=dict)
    copies: dict[str, Count] = field(default_factory=dict)
    local: Count = 0
    barriers: Count = 0
    exposed: Count = 0

    def __post_init__(self) -> None:
        """Reject impossible widths."""
        for bits in (*self.loads, *self.stores, *self.copies):
            if bits not in _WIDTHS:
                raise ValueError(f"{bits!r:.40} is not an access width")

    @property
    def widest_load(self) -> str:
        """Bits of the widest load, ``TMA``, or empty if nothing is loaded."""
        return _widest(self.loads, self.copies, tma=_any(self.tma, TMA_LOADS))

    @property
    def widest_store(self) -> str:
        """Bits of the widest store, ``TMA``, or empty if nothing is stored."""
        return _widest(self.stores, tma=_any(self.tma, TMA_STORES))

    @property
    def wide_share(self) -> float | None:
        """Fraction of bytes in accesses of 128 bits or more, as counted in the code.

        Loops count once. None if only TMA accesses global memory.
        """
        wide = total = 0
        for widths in (self.loads, self.stores, self.copies):
            moved = {int(bits): int(bits) * count for bits, count in widths.items()}
            wide += sum(bytes_ for bits, bytes_ in moved.items() if bits >= WIDE)
            total += sum(moved.values())
        return wide / total if total else None


def read_cubin(cubin: Path) -> tuple[dict[str, Code], str]:
    """Read all kernels of a cubin.

    Args:
        cubin: The file.

    Returns:
        Kernel's (mangled) name -> its code; and the disassembly.

    Raises:
        UserError: cuobjdump is not installed.
        ToolError: cuobjdump cannot read the file.
    """
    cuobjdump = find_tool("cuobjdump")
    resources, sass, elf = (
        run_tool(cuobjdump, option, cubin)[0] for option in ("-res-usage", "-sass", "-elf")
    )
    return parse(resources, sass, elf), sass


def parse(resources: str, sass: str, elf: str) -> dict[str, Code]:
    """Map kernel names to their code, from cuobjdump's output for -res-usage, -sass and -elf."""
    threads = dict(_threads(elf))
    instructions = dict(_instructions(sass))
    codes = {}
    for name, registers, stack, shared in _RESOURCES.findall(resources):
        if name not in instructions:
            continue
        codes[name] = Code(
            registers=int(registers),
            stack=int(stack) if stack.isdecimal() else None,
            static_shared=max(0, int(shared) - SHARED_RESERVED),
            threads=threads.get(name),
            **_count(instructions[name]),
        )
    return codes


def _threads(elf: str) -> Iterator[tuple[str, int]]:
    for name, block in _INFO.findall(elf):
        if match := _THREADS.search(block):
            yield name, prod(int(size, 16) for size in match[1].split())


def _instructions(sass: str) -> Iterator[tuple[str, list[Instruction]]]:
    parts = _FUNCTION.split(sass)
    for function, body in zip(parts[1::2], parts[2::2], strict=True):
        found = _INSTRUCTION.findall(body)
        yield (
            function,
            [
                Instruction(int(address, 16), predicate, name, suffixes, operands.strip())
                for address, predicate, name, suffixes, operands in found
            ],
        )


def _count(instructions: list[Instruction]) -> dict[str, Any]:
    names = Counter(one.name for one in instructions)
    loops = find_main_loops(instructions, TENSOR_CORES)

    def named(wanted: tuple[str, ...]) -> dict[str, int]:
        return {name: names[name] for name in dict.fromkeys(wanted) if names[name]}

    def widths(wanted: tuple[str, ...]) -> dict[str, int]:
        bits = Counter(_width(one.suffixes) for one in instructions if one.name in wanted)
        return dict(sorted(bits.items(), key=lambda item: -int(item[0])))

    return {
        "tensor_cores": named(TENSOR_CORES),
        "tma": named(TMA_LOADS + TMA_STORES),
        "loads": widths(_LOADS),
        "stores": widths(_STORES),
        "copies": widths(_COPIES),
        "local": sum(named(_LOCAL).values()),
        "barriers": loops.barriers,
        "exposed": loops.exposed,
    }


def _width(suffixes: str) -> str:
    return next((_BITS[part] for part in suffixes.split(".") if part in _BITS), "32")


def _any(counts: dict[str, int], names: tuple[str, ...]) -> bool:
    return any(name in counts for name in names)


def _widest(*widths: dict[str, int], tma: bool) -> str:
    if tma:
        return "TMA"
    return max((bits for part in widths for bits in part), key=int, default="")
