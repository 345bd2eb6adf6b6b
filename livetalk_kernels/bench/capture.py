"""Marks ranges for Nsight Compute and Nsight Systems, and builds the command lines that use them.

Everything else - inputs, checks, compilation - is outside the ranges.
"""

import shlex
from collections.abc import Callable, Sequence

import torch

from ..spec import Case
from .report import Row
from .roofline import Roofline
from .runner import Settings, check, make_inputs

CALLS = {"ncu": 1, "nsys": 10}  # ncu itself replays a kernel, with cold caches
COMMANDS = {
    "ncu": "ncu --profile-from-start off --nvtx --set full --export livetalk-bench",
    "nsys": "nsys profile --trace cuda,nvtx --capture-range cudaProfilerApi "
    "--capture-range-end repeat --output livetalk-bench",
}


def command_line(tool: str, arguments: Sequence[str]) -> str:
    """Build the command line that profiles a benchmark.

    Args:
        tool: ``ncu`` or ``nsys``.
        arguments: Arguments of ``livetalk``.
    """
    return f"{COMMANDS[tool]} livetalk {shlex.join(arguments)}"


def capture_case(
    case: Case, settings: Settings, rough: Roofline, tool: str, say: Callable[[str], None]
) -> list[Row]:
    """Call every backend of a case within its own marked range, named ``op/case/backend``.

    Args:
        case: A case on a GPU.
        settings: Which backends to run.
        rough: Rough limits of the machine.
        tool: ``ncu`` or ``nsys``.
        say: Called with progress messages.

    Returns:
        The rows, without times: times under a profiler are meaningless.
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
