"""Finds a kernel's main loops, those that use tensor cores, and what stalls them.

Two things slow a pipelined loop that instruction counts do not show. A barrier of all warps makes
each wait for the slowest in every step. And if the last block is loaded after the loop, nothing
hides its loads: tensor cores idle for the full memory latency.

Machine code is split into basic blocks; loops are the strongly connected components of their graph,
so a wait that the compiler moved past the kernel's end still belongs to its loop.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

BRANCH, EXITS = "BRA", ("EXIT", "RET", "BRX", "JMX")
BARRIER = "BAR"
LOADS = ("UTMALDG", "UBLKCP", "LDGSTS")  # asynchronous, to shared memory

Blocks: TypeAlias = frozenset[int]


class Instruction(NamedTuple):
    """One line of a disassembly: ``@P0 LDG.E.128 R4, [R2]``.

    Attributes:
        address: Byte offset within its function.
        predicate: ``@P0`` or ``@!UP1``; empty if it always executes.
        name: ``LDG``.
        suffixes: ``.E.128``.
        operands: ``R4, [R2]``.
    """

    address: int
    predicate: str
    name: str
    suffixes: str
    operands: str

    @property
    def target(self) -> int | None:
        """Target of a branch; None for other instructions and for register targets."""
        last = self.operands.rpartition(" ")[2]
        return int(last, 16) if self.name == BRANCH and last.startswith("0x") else None

    @property
    def falls_through(self) -> bool:
        """Whether execution may fall through to the next instruction in memory."""
        conditional = bool(self.predicate) or "," in self.operands or " " in self.operands
        return conditional or self.name not in (BRANCH, *EXITS)

    @property
    def is_barrier(self) -> bool:
        """Whether all warps of a block wait for each other; barriers of subsets have a count."""
        return self.name == BARRIER and ".ARV" not in self.suffixes and "," not in self.operands


@dataclass(frozen=True, kw_only=True)
class MainLoops:
    """Findings about a function's main loops.

    Attributes:
        count: Innermost loops with tensor-core instructions.
        barriers: Barriers of all warps that every step passes; those on a branch, such as the
            end of a tile in a persistent kernel, do not count.
        exposed: Asynchronous loads after a main loop whose products are outside any loop.
    """

    count: int
    barriers: int
    exposed: int


def find_main_loops(instructions: Sequence[Instruction], cores: Collection[str]) -> MainLoops:
    """Find a function's main loops.

    Args:
        instructions: All of the function's, by address.
        cores: Names of tensor-core instructions.
    """
    graph = _Graph(instructions)
    busy = frozenset(
        index
        for index, block in enumerate(graph.blocks)
        if any(instruction.name in cores for instruction in block)
    )
    loops = list(graph.innermost(frozenset(range(len(graph.blocks))), busy))
    inside = frozenset[int]().union(*loops)
    behind = graph.reached(inside) - inside
    exposed = sum(
        graph.feeds(index, place, cores, outside=busy - inside)
        for index in behind
        for place, instruction in enumerate(graph.blocks[index])
        if instruction.name in LOADS
    )
    barriers = 0
    for loop in loops:
        for index in loop:
            found = sum(one.is_barrier for one in graph.blocks[index])
            around = found and next(graph.innermost(loop - {index}, busy), None)
            barriers += 0 if around else found
    return MainLoops(count=len(loops), barriers=barriers, exposed=exposed)


class _Graph:
    """A function's basic blocks and their successors."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        starts = {one.target for one in instructions}
        self.blocks: list[list[Instruction]] = []
        ended = True
        for one in instructions:
            if ended or one.address in starts:
                self.blocks.append([])
            self.blocks[-1].append(one)
            ended = one.name == BRANCH or one.name in EXITS
        index = {block[0].address: number for number, block in enumerate(self.blocks)}
        self.after: list[set[int]] = []
        self.before: list[set[int]] = [set() for _ in self.blocks]
        for number, block in enumerate(self.blocks):
            last = block[-1]
            found = {index[last.target]} if last.target in index else set()
            if last.falls_through and number + 1 < len(self.blocks):
                found.add(number + 1)
            self.after.append(found)
            for follower in found:
                self.before[follower].add(number)

    def reached(self, begin: Blocks, within: Blocks | None = None) -> Blocks:
        """Return the blocks that may run after any of ``begin``."""
        return _closure(self.after, begin, within)

    def innermost(self, within: Blocks, busy: Blocks) -> Iterator[Blocks]:
        """Yield the loops among these blocks that contain busy ones, but no smaller such loop."""
        left = within
        while left:
            start = min(left)
            loop = self.reached(frozenset({start}), left) & _closure(
                self.before, frozenset({start}), left
            )
            left -= loop | {start}
            if not loop & busy:
                continue
            entries = {block for block in loop if self.before[block] - loop}
            inner = list(self.innermost(loop - {min(entries or loop)}, busy))
            yield from inner or [loop]

    def feeds(self, index: int, place: int, cores: Collection[str], *, outside: Blocks) -> bool:
        """Return whether a tensor-core instruction outside the loops may follow an instruction."""
        rest = self.blocks[index][place:]
        if index in outside and any(one.name in cores for one in rest):
            return True
        return bool(self.reached(frozenset({index})) & outside)


def _closure(edges: Sequence[set[int]], begin: Blocks, within: Blocks | None) -> Blocks:
    """Return the blocks on paths of at least one edge."""
    found: set[int] = set()
    waiting = list(begin)
    while waiting:
        fresh = edges[waiting.pop()] - found
        if within is not None:
            fresh &= within
        found |= fresh
        waiting += fresh
    return frozenset(found)
