"""Main loops of a kernel, read from its disassembly: their barriers, and loads that they leave."""

import dataclasses

import pytest

from livetalk_kernels.inspection import sass
from livetalk_kernels.inspection.loops import Instruction, MainLoops, find_main_loops

PIPELINED = """
    UTMALDG.2D [UR8], [UR4]
    BAR.SYNC.DEFER_BLOCKING 0x0
loop:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR20+0x38000], R192
    @!P3 BRA spin
go:
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24
    BAR.SYNC.DEFER_BLOCKING 0x0
    BAR.ARV 0x1, 0x100
    BAR.SYNC.DEFER_BLOCKING R5, 0x80
    @P0 BRA skip
    BAR.SYNC 0x0
skip:
    UTMALDG.2D [UR8], [UR4]
    @P1 BRA loop
    BAR.SYNC.DEFER_BLOCKING 0x0
    UTMASTG.2D [UR8], [UR4]
    {tail}
    EXIT
spin:
    SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR20+0x38000], R192
    @!P3 BRA spin
    BRA go
end:
    BRA end
"""
TWO_LOOPS = """
first:
    BAR.SYNC 0x0
    QGMMA.64x128x32.F32.E4M3.E4M3 R24, R100, gdesc[UR16], R24
    @P1 BRA first
    UTMALDG.2D [UR8], [UR4]
second:
    QGMMA.64x128x32.F32.E4M3.E4M3 R24, R100, gdesc[UR16], R24
    BAR.RED.AND.DEFER_BLOCKING 0x0
    BRA P2, second
    EXIT
"""
NESTED = """
tile:
    BAR.SYNC 0x0
    LDGSTS.E.128 [R1], desc[UR4][R2.64]
step:
    BAR.SYNC 0x0
    HMMA.16816.F32.BF16 R4, R8, R12, R4
    @P1 BRA step
    BAR.SYNC 0x0
    @P2 EXIT
    BRA tile
"""
NO_LOOP = """
    UTMALDG.2D [UR8], [UR4]
    BAR.SYNC 0x0
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24
    EXIT
"""
NO_CORES = """
loop:
    BAR.SYNC 0x0
    LDGSTS.E.128 [R1], desc[UR4][R2.64]
    @P0 BRA loop
    RET.REL.NODEC R2 0x0
"""


def assemble(text: str) -> list[Instruction]:
    """Instructions of 16 bytes; names with a colon are addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    places, body = {}, []
    for line in lines:
        if line.endswith(":"):
            places[line[:-1]] = hex(16 * len(body))
        else:
            body.append(line)
    dump = "\tFunction : kernel\n"
    for number, line in enumerate(body):
        words = [places.get(word, word) for word in line.split(" ")]
        dump += f"        /*{16 * number:04x}*/   {' '.join(words)} ;   /* 0x0 */\n"
    ((name, found),) = sass._instructions(dump)
    assert name == "kernel" and len(found) == len(body)
    return found


EXPOSED = """
    @UP1 UTMALDG.2D [UR16], [UR28]
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24
    LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]
    @P0 BRA end
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR16], R24
    LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]
"""


@pytest.mark.parametrize(
    ("text", "count", "barriers", "exposed"),
    [
        (PIPELINED.format(tail=""), 1, 1, 0),  # of all warps, in each step: a branch's is not
        (PIPELINED.format(tail=EXPOSED), 1, 1, 2),  # nothing is multiplied behind the third
        (TWO_LOOPS, 2, 2, 0),  # loads before a loop are its own
        (NESTED, 1, 1, 0),
        (NO_LOOP, 0, 0, 0),
        (NO_CORES, 0, 0, 0),
        ("EXIT", 0, 0, 0),
    ],
)
def test_main_loops(text: str, count: int, barriers: int, exposed: int) -> None:
    found = find_main_loops(assemble(text), sass.TENSOR_CORES)
    assert found == MainLoops(count=count, barriers=barriers, exposed=exposed)


def test_instructions_are_read() -> None:
    branch, always, load = assemble("@!UP1 BRA 0x10\nBRA 0x0\n@P0 LDG.E.128 R4, [R2+0x10]")
    assert branch == Instruction(0, "@!UP1", "BRA", "", "0x10")
    assert (branch.target, branch.falls_through) == (16, True)
    assert (always.target, always.falls_through) == (0, False)
    assert (load.name, load.suffixes, load.operands) == ("LDG", ".E.128", "R4, [R2+0x10]")
    assert load.target is None and load.falls_through and not load.is_barrier


def test_the_code_has_what_its_loops_have() -> None:
    dump = "\tFunction : first\n" + "".join(
        f"/*{one.address:04x}*/ {one.predicate} {one.name}{one.suffixes} {one.operands} ;\n"
        for one in assemble(PIPELINED.format(tail=EXPOSED))
    )
    resources = " Function first:\n  REG:168 STACK:16 SHARED:5120 LOCAL:0\n"
    code = sass.parse(resources, dump, "")["first"]
    assert (code.barriers, code.exposed) == (1, 2)
    assert dataclasses.replace(code, barriers=0, exposed=0).tensor_cores == {"HGMMA": 3}
