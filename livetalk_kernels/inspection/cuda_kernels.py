"""Finds all CUDA kernels: in the extension, or by compiling their sources."""

import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..backends.cpu import FOLDER
from ..outputs import new_file, write_text
from ..registry import op_names
from . import ptxas
from .report import TARGET, Kernel
from .sass import read_cubin
from .tools import ToolError, find_tool, run_tool

BACKEND = "cuda"
NAMESPACE = "livetalk::cuda::"
CUTLASS_KERNEL = re.compile(r"cutlass::device_kernel<(.*?) ?>")  # CUTLASS's wrapper of ours
EXTENSION = FOLDER / "_C_cuda.so"
SOURCES = FOLDER.parent / "csrc"
FLAGS = ("-cubin", f"-arch={TARGET}", "-std=c++20", "-O3", "-Xptxas", "-v")


def extension_kernels(ops: Sequence[str], keep: Path | None = None) -> list[Kernel]:
    """Read the kernels of the built extension, which may be older than the sources.

    Args:
        ops: Ops whose kernels to read.
        keep: Existing folder for machine code and disassembly.

    Raises:
        UserError: cuobjdump is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_tool(find_tool("cuobjdump"), "-xelf", TARGET, EXTENSION, cwd=Path(folder))
        except ToolError as error:
            return [Kernel(op="", backend=BACKEND, name=EXTENSION.name, error=str(error))]
        cubins = sorted(Path(folder).glob("*.cubin"))
        return [kernel for cubin in cubins for kernel in _kernels(cubin, ops, None, None, keep)]


def sources() -> list[Path]:
    """List the kernels' source files; none if livetalk was installed without them.

    CUTLASS kernels are read from the extension only: each takes a minute to compile.
    """
    return sorted((SOURCES / "cuda").glob("*.cu"))


def source_kernels(source: Path, ops: Sequence[str], keep: Path | None = None) -> list[Kernel]:
    """Compile one source file with nvcc and read its kernels.

    Args:
        source: One of ``sources``.
        ops: Ops whose kernels to read.
        keep: Existing folder for machine code and disassembly.

    Raises:
        UserError: nvcc or cuobjdump is not installed.
    """
    includes = (f"-I{SOURCES}", f"-I{SOURCES / 'include'}")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, f"{source.stem}.cubin")
        start = time.monotonic()
        try:
            _, log = run_tool(find_tool("nvcc"), *FLAGS, *includes, source, "-o", cubin)
        except ToolError as error:
            return [Kernel(op="", backend=BACKEND, name=source.name, error=str(error))]
        seconds = round(time.monotonic() - start, 2)
        return _kernels(cubin, ops, ptxas.parse(log), seconds, keep)


def _kernels(
    cubin: Path,
    ops: Sequence[str],
    log: ptxas.Log | None,
    seconds: float | None,
    keep: Path | None,
) -> list[Kernel]:
    try:
        codes, sass = read_cubin(cubin)
    except ToolError as error:
        return [Kernel(op="", backend=BACKEND, name=cubin.stem, error=str(error))]
    if keep is not None:
        with new_file(keep / cubin.name) as file:
            file.write(cubin.read_bytes())
        write_text(keep / f"{cubin.stem}.sass", sass)
    names, kernels = readable(codes), []
    for mangled, code in codes.items():
        name = names[mangled]
        op = max((op for op in op_names() if op in name), key=len, default="")
        if op and op not in ops:
            continue
        part = log.of(mangled) if log else None
        kernels.append(
            Kernel(
                op=op,
                backend=BACKEND,
                name=name,
                code=code,
                spills=part.spilled() if part else None,
                warnings=part.warnings if part else (),
                seconds=seconds,
            )
        )
    return kernels


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """Map mangled names to C++ names without namespace, result and arguments.

    Without c++filt, which comes with every C++ compiler, names stay mangled.
    """
    names = list(mangled)
    program = shutil.which("c++filt")
    if program is None or not names:
        return {name: name for name in names}
    lines = run_tool(program, *names)[0].splitlines()
    return {name: _short(line) for name, line in zip(names, lines, strict=True)}


def _short(line: str) -> str:
    name = line.rpartition("(")[0].removeprefix("void ").replace(NAMESPACE, "")
    wrapped = CUTLASS_KERNEL.fullmatch(name)
    return wrapped[1] if wrapped else name or line
