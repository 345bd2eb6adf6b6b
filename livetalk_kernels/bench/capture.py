"""Ranges for Nsight Compute and Nsight Systems, and the command lines that use them.

Everything else - inputs, checks, compilation - lies outside the ranges. Untested on a GPU.
"""

import shlex
from collections.abc import Callable, Sequence

import torch

from ..spec import Case
from .report import Row
from .roofline import Roofline
from .runner import Settings, check, make_inputs

CALLS = {"ncu": 1, "nsys": 10}  # ncu replays a kernel by itself, from cold caches
COMMANDS = {
    "ncu": "ncu --profile-from-start off --nvtx --set full --export livetalk-bench",
    "nsys": "nsys profile --trace cuda,nvtx --capture-range cudaProfilerApi "
    "--capture-range-end repeat --output livetalk-bench",
}


def command_line(tool: str, arguments: Sequence[str]) -> str:
    """The line that profiles a benchmark.

    Args:
        tool: ``ncu`` or ``nsys``.
        arguments: Of ``livetalk``.
    """
    return f"{COMMANDS[tool]} livetalk {shlex.join(arguments)}"


def capture_case(
    case: Case, settings: Settings, rough: Roofline, tool: str, say: Callable[[str], None]
) -> list[Row]:
    """Call every backend of a case within a marked range of its own, named ``op/case/backend``.

    Args:
        case: A case on a GPU.
        settings: Which backends.
        rough: The machine's limits, roughly.
        tool: ``ncu`` or ``nsys``.
        say: Told what is going on.

    Returns:
        The rows, without times: times under a profiler say nothing.
    """
    with torch.inference_mode():
        positional, keywords = arguments = make_inputs(case)
        checked = check(case, arguments, settings, rough, say)
        torch.cuda.synchronize(case.device)
        torch.cuda.profiler.start()
        for contestant in checked:
            if contestant.run is not None:
                with torch.cuda.nvtx.range(f"{case.op}/{case.name}/{contestant.row.backend}"):
                    for _ in range(CALLS[tool]):
                        contestant.run(*positional, **keywords)
                    torch.cuda.synchronize(case.device)
        torch.cuda.profiler.stop()
    return [contestant.row for contestant in checked]
