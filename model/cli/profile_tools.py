"""``livetalk profile --nsys`` and ``--ncu``: the same command, under a profiler of NVIDIA's.

The tool sees the measured chunks alone, with the stages and ops as NVTX ranges. Untested on a GPU.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from livetalk_kernels.errors import UserError

from .ranks import PROGRAM

# Tool -> its arguments before the output file, and that file's name.
ARGUMENTS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "nsys": (
            (
                "profile",
                "--trace=cuda,nvtx",
                "--capture-range=cudaProfilerApi",
                "--capture-range-end=stop",
                "--force-overwrite=true",
                "--output",
            ),
            "nsys",
        ),
        "ncu": (
            ("--profile-from-start", "off", "--nvtx", "--set", "detailed", "-f", "--export"),
            "ncu",
        ),
    }
)


def run_under(tool: str, args: argparse.Namespace) -> int:
    """Run this command again under the tool, which writes into the output folder.

    Args:
        tool: ``nsys`` or ``ncu``.
        args: Options of ``livetalk profile``, checked.

    Returns:
        Exit code of the run.

    Raises:
        UserError: There is no GPU, or no such tool.
    """
    from ..loading import resolve_device

    if tool == "ncu" and args.nproc not in (None, 1):
        raise UserError(
            "--ncu: runs kernels again one by one, which ranks that wait for each other cannot; "
            "use --nproc 1, or --nsys"
        )
    if resolve_device(args.device).type != "cuda":
        raise UserError(f"--{tool}: sees NVIDIA GPUs only; leave it out on a CPU")
    program = shutil.which(tool)
    if program is None:
        raise UserError(
            f"--{tool}: there is no {tool} on the PATH; it comes with the CUDA toolkit "
            f"({'nsight-systems' if tool == 'nsys' else 'nsight-compute'})"
        )
    command = command_line(program, tool, args.output, args.argv)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # the tool and the command under it have heard it too
        return 130


def command_line(program: str, tool: str, folder: Path, arguments: list[str]) -> list[str]:
    """The line that runs ``livetalk`` with these arguments under the tool."""
    before, name = ARGUMENTS[tool]
    own = [word for word in arguments if word != f"--{tool}"]
    return [program, *before, str(folder / name), sys.executable, *PROGRAM, *own, "--captured"]
