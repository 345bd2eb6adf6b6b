"""``livetalk profile --nsys`` and ``--ncu``: rerun the command under one of NVIDIA's profilers.

The tool sees only the measured chunks, with stages and ops as NVTX ranges. Untested on a GPU.
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


TOOLS = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--nsys`` and ``--ncu``."""
    for tool, name in TOOLS.items():
        parser.add_argument(
            f"--{tool}",
            action="store_true",
            help=f"run under {name}, for the measured chunks only; times are then distorted",
        )


def chosen(args: argparse.Namespace) -> str | None:
    """Name the tool that was asked for; None without."""
    return next((name for name in TOOLS if getattr(args, name)), None)


def run_under(tool: str, args: argparse.Namespace) -> int:
    """Rerun this command under the tool, which writes into the output folder.

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
            "--ncu: replays kernels one at a time, which would deadlock several ranks; use "
            "--nproc 1, or --nsys"
        )
    if resolve_device(args.device).type != "cuda":
        raise UserError(f"--{tool}: supports NVIDIA GPUs only; drop it on a CPU")
    program = shutil.which(tool)
    if program is None:
        raise UserError(
            f"--{tool}: {tool} is not on the PATH; it comes with the CUDA toolkit "
            f"({'nsight-systems' if tool == 'nsys' else 'nsight-compute'})"
        )
    command = command_line(program, tool, args.output, args.argv)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:  # the tool and its command have received it too
        return 130


def command_line(program: str, tool: str, folder: Path, arguments: list[str]) -> list[str]:
    """Build the command line that runs ``livetalk`` with these arguments under the tool."""
    before, name = ARGUMENTS[tool]
    own = [word for word in arguments if word != f"--{tool}"]
    return [program, *before, str(folder / name), sys.executable, *PROGRAM, *own, "--captured"]
