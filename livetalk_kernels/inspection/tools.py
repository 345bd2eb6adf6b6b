"""Runs NVIDIA's binary tools, which come with Triton."""

import shutil
import subprocess
from pathlib import Path

from ..errors import UserError


class ToolError(RuntimeError):
    """A tool failed; the message is its first line."""


def find_tool(name: str) -> str:
    """Find ``cuobjdump``, ``ptxas`` or another tool: Triton's, else the one on PATH.

    Raises:
        UserError: It is in neither place.
    """
    try:
        from triton import knobs

        return str(getattr(knobs.nvidia, name).path)
    except (ImportError, AttributeError, RuntimeError):  # no Triton; not one of its tools; missing
        found = shutil.which(name)
    if found is None:
        raise UserError(
            f"{name}: not found; pip install triton, or put the CUDA toolkit's bin folder on PATH"
        )
    return found


def run_tool(program: str, *arguments: str | Path, cwd: Path | None = None) -> tuple[str, str]:
    """Run a program to completion.

    Args:
        program: Path of the program.
        arguments: Its arguments.
        cwd: Folder to run it in.

    Returns:
        Its stdout and stderr.

    Raises:
        ToolError: It failed.
    """
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        errors = [line for line in lines if "error" in line or "fatal" in line] or lines
        raise ToolError(f"{Path(program).name} failed: {errors[0].strip()}")
    return done.stdout, done.stderr


def tool_version(program: str) -> str:
    """Return the release of an NVIDIA tool, such as ``13.1``, from its ``--version``."""
    text, _ = run_tool(program, "--version")
    release = text.partition("release ")[2].partition(",")[0]
    return release or text.strip().splitlines()[-1]
