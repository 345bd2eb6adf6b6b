"""Package lists and the compiled extensions; everything else is in pyproject.toml.

The folder ``model/`` is installed as ``livetalk_model``. Sub-packages are found, so a new folder
with an ``__init__.py`` (an op, for example) needs no entry here; nor does a new source in ``csrc``.

``livetalk_kernels/_C.so`` is built whenever there is a C++ compiler, ``_C_cuda.so`` by
``python setup.py build_cuda`` (``make cuda``), or along with the other if a GPU is visible. Both
use only libtorch's stable ABI and no Python headers, so one binary works with every Python and
every torch from 2.11 on; a CUDA build needs neither a GPU nor a CUDA build of torch.

Python loads torch's libraries privately (RTLD_LOCAL), so an extension names the ones it needs. The
dynamic linker then uses those that ``import torch`` has loaded, which have the same name: no path
is recorded. ``libtorch_cuda.so`` is missing from a CPU build of torch; there a stub of that name,
which stays in the build folder, replaces it while linking.

The CUDA runtime is linked statically, like in NVIDIA's own libraries: its symbols stay hidden, it
shares the device's primary context, and so streams and memory, with torch's own runtime, and one
binary works with a torch for CUDA 12 or CUDA 13. It requires a driver of the toolkit's major
version; ``livetalk_kernels/backends/cuda.py`` checks that.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
LIBRARY = "_C.so"
REASON = "_C.reason"  # why there is no library, for `livetalk backends`
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"  # 2.11
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# GCC considers its own AVX-512 intrinsics uninitialised.
CXX_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
# Machine code for Hopper and 8.x, and portable code that a driver as new as the toolkit translates
# for newer GPUs; backends/cuda.py knows which GPU uses which.
GENCODE = [
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_80,code=[sm_80,compute_80]",
]
NVCC_FLAGS = ["-std=c++20", "-O3", *GENCODE, "-Xcompiler=-fPIC,-fvisibility=hidden"]
# Code based on CUTLASS runs only on a Hopper.
SM90_FLAGS = ["-std=c++17", "-O3", GENCODE[0], "-Xcompiler=-fPIC,-fvisibility=hidden", "-DNDEBUG"]
SM90_FLAGS += ["--expt-relaxed-constexpr"]
AVX512 = ("f", "bw", "vl", "dq")
ISAS: dict[str, list[str]] = {"scalar": []}
if platform.machine() == "x86_64":
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [*ISAS["avx2"], *(f"-mavx512{part}" for part in AVX512)]
    ISAS["avx512_bf16"] = [*ISAS["avx512"], "-mavx512bf16"]
    ISAS["amx"] = [*ISAS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]


class BuildError(BaseError):
    """A failed build, with what to do about it in one line."""


class NoCompilerError(BuildError):
    """There is nothing to compile with; everything else works without."""


def torch_folder() -> Path:
    """Find torch's folder, for its headers and libraries."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("no torch to compile against; install torch, then build again")
    return Path(spec.origin).parent


def run_all(commands: Iterable[list[str]], *, at_most: int | None = None) -> None:
    """Run compiler commands, one per core at a time; the first failure counts.

    Args:
        commands: The commands.
        at_most: Limit on concurrent commands, for compilers that need much memory.
    """

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode:
            raise BuildError(f"{command[0]} failed on {command[-1]}; its messages are above")

    with ThreadPoolExecutor(min(os.cpu_count() or 1, at_most or sys.maxsize)) as pool:
        list(pool.map(run, commands))


def compile_all(jobs: Mapping[Path, list[str]], *, at_most: int | None = None) -> None:
    """Run the compiler for every object that is missing, or older than its sources.

    Args:
        jobs: Object -> command without ``-o`` and dependency flags, its source last.
        at_most: As in ``run_all``.
    """
    commands = (
        [*command[:-1], "-MMD", "-MF", str(depends(job)), "-o", str(job), command[-1]]
        for job, command in jobs.items()
        if stale(job, command)
    )
    run_all(commands, at_most=at_most)


def depends(job: Path) -> Path:
    """Return the file in which the compiler lists an object's dependencies."""
    return job.with_suffix(".d")


def stale(job: Path, command: list[str]) -> bool:
    """Return whether an object is missing, or older than any of our sources or headers in it."""
    if not (job.exists() and depends(job).exists()):
        return True
    listed = depends(job).read_text(encoding="utf-8").replace("\\\n", " ").split()
    ours = [Path(name) for name in listed if name.startswith(str(CSRC))]
    sources = [Path(command[-1]), Path(__file__), *ours]
    return any(not s.exists() or s.stat().st_mtime > job.stat().st_mtime for s in sources)


def build_cpu(target: Path, work: Path) -> None:
    """Compile ``csrc/cpu`` once per instruction set and ``csrc/bindings/*_cpu.cpp`` once, and link.

    Raises:
        BuildError: There is no compiler or no torch, or the compiler failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoCompilerError("no C++ compiler found; install g++ (or set CXX), then build again")
    torch = torch_folder()
    work.mkdir(parents=True, exist_ok=True)
    common = [*compiler.split(), *CXX_FLAGS, f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    jobs: dict[Path, list[str]] = {}
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        for isa, flags in ISAS.items():
            define = f"-DLIVETALK_ISA={isa}"
            jobs[work / f"{source.stem}.{isa}.o"] = [*common, *flags, define, "-c", str(source)]
    for source in sorted((CSRC / "bindings").glob("*_cpu.cpp")):
        system = ["-isystem", str(torch / "include")]
        jobs[work / f"{source.stem}.o"] = [*common, TORCH_TARGET, *system, "-c", str(source)]
    compile_all(jobs)
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    link(target, [*compiler.split(), "-shared", *map(str, jobs), *libraries])


def link(target: Path, command: list[str]) -> None:
    """Link to a temporary name and rename, so that a running process keeps the old file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".so.new")
    run_all([[*command, "-o", str(fresh)]])
    fresh.replace(target)


def find_nvcc() -> str | None:
    """Find the CUDA compiler: in CUDA_HOME if set, else on the path or in its usual place."""
    home = os.environ.get("CUDA_HOME")
    places = [Path(home, "bin")] if home else [None, Path("/usr/local/cuda/bin")]
    found = (shutil.which("nvcc", path=place and str(place)) for place in places)
    return next(filter(None, found), None)


def find_cutlass() -> Path | None:
    """Find CUTLASS's headers, from the package nvidia-cutlass; None if not installed."""
    import importlib.util

    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "source/include"
    return folder if (folder / "cutlass/cutlass.h").is_file() else None


def build_cuda(target: Path, work: Path) -> None:
    """Compile ``csrc/cuda`` and ``csrc/bindings/*_cuda.cpp``, and link.

    With CUTLASS, ``csrc/cuda/sm90`` and ``csrc/bindings/*_sm90.cpp`` are included.

    Raises:
        BuildError: There is no nvcc or no torch, or a compiler failed.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(
            "no CUDA compiler found; install the CUDA toolkit 12.8 or newer (or set CUDA_HOME), "
            "then build again; everything but the cuda backends works without"
        )
    torch, cutlass = torch_folder(), find_cutlass()
    work.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    jobs: dict[Path, list[str]] = {}
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        jobs[work / f"{source.stem}.o"] = [nvcc, *NVCC_FLAGS, *includes, "-c", str(source)]
    bindings = sorted((CSRC / "bindings").glob("*_cuda.cpp"))
    if cutlass is not None:
        bindings += sorted((CSRC / "bindings").glob("*_sm90.cpp"))
    for source in bindings:
        flags = ["-std=c++20", "-O2", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
        system = ["-isystem", str(torch / "include")]
        jobs[work / f"{source.stem}.o"] = [
            *(nvcc, *flags, TORCH_TARGET, *includes, *system, "-c", str(source))
        ]
    compile_all(jobs)
    if cutlass is None:
        print("note: built without CUTLASS's FP8 linears; pip install --no-deps nvidia-cutlass")
    else:
        system = ["-isystem", str(cutlass)]
        large = {
            work / f"sm90_{source.stem}.o": [
                *(nvcc, *SM90_FLAGS, *includes, *system, "-c", str(source))
            ]
            for source in sorted((CSRC / "cuda/sm90").glob("*.cu"))
        }
        compile_all(large, at_most=2)  # each takes 3 GB
        jobs |= large
    link_cuda(target, nvcc, list(jobs), torch / "lib", work)


def link_cuda(target: Path, nvcc: str, objects: list[Path], torch_lib: Path, work: Path) -> None:
    """Link against torch's libraries; an undefined symbol is an error here, not at run time.

    Args:
        target: The library.
        nvcc: The CUDA compiler, which links.
        objects: Its object files.
        torch_lib: Folder of torch's libraries.
        work: Folder for ``stub/libtorch_cuda.so``, if torch lacks that library.

    Raises:
        BuildError: The linker failed.
    """
    folders = [torch_lib]
    if not (torch_lib / "libtorch_cuda.so").exists():
        folders.append(work / "stub")
        build_stub(folders[-1] / "libtorch_cuda.so", nvcc, objects, torch_lib)
    libraries = [*(f"-L{folder}" for folder in folders), "-ltorch_cuda", "-ltorch_cpu", "-lc10"]
    flags = ["-shared", "-cudart=static", "-Xlinker=-z,defs"]
    link(target, [nvcc, *flags, *map(str, objects), *libraries])


def build_stub(stub: Path, nvcc: str, objects: list[Path], torch_lib: Path) -> None:
    """Build a ``libtorch_cuda.so`` with the symbols that objects need and a CPU build lacks.

    Its functions only report failure (1): for linking, and for tests that load the result.
    """
    wanted = symbols(objects, "--undefined-only")
    here = [torch_lib / "libtorch_cpu.so", torch_lib / "libc10.so"]
    wanted -= symbols(here, "--dynamic", "--defined-only")
    names = sorted(name for name in wanted if name.startswith(("aoti_torch_", "torch_")))
    stub.parent.mkdir(parents=True, exist_ok=True)
    source = stub.with_suffix(".c")
    lines = (f"int {name}(void) {{ return 1; }}\n" for name in names)
    source.write_text("".join(lines), encoding="utf-8")
    flags = ["-shared", "-cudart=none", "-Xcompiler=-fPIC", f"-Xlinker=-soname,{stub.name}"]
    link(stub, [nvcc, *flags, str(source)])


def symbols(files: list[Path], *which: str) -> set[str]:
    """List names in the symbol tables of objects or libraries with ``nm``.

    Args:
        files: The files.
        *which: Options of ``nm`` that select symbols.

    Raises:
        BuildError: There is no ``nm``, or it failed.
    """
    nm = shutil.which("nm")
    if nm is None:
        raise BuildError("no nm found; install binutils, then build again")
    command = [nm, *which, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"nm failed: {done.stderr.strip()}")
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines() if line.strip()}


def gpu_visible() -> bool:
    """Return whether the machine has an NVIDIA driver."""
    return Path("/proc/driver/nvidia/version").exists()


class InPlace(Command):
    """A command without options, which builds in place."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """There are none."""

    def finalize_options(self) -> None:
        """There are none."""


class BuildCuda(InPlace):
    """Build ``_C_cuda`` in place: ``python setup.py build_cuda``."""

    description = "build the CUDA kernels in place; needs nvcc, no GPU"

    def run(self) -> None:
        """Build."""
        target = ROOT / "livetalk_kernels/_C_cuda.so"
        build_cuda(target, ROOT / "build/cuda")
        print(f"built {target.relative_to(ROOT)}")


class BuildCpu(InPlace):
    """Build ``_C`` in place: ``python setup.py build_cpu``."""

    description = "build the CPU kernels in place"

    def run(self) -> None:
        """Build; without a compiler, leave the reason instead."""
        try:
            build_into(ROOT / "livetalk_kernels")
        except NoCompilerError as error:
            print(f"note: there are no compiled CPU kernels: {error}")


def build_into(folder: Path) -> None:
    """Build ``_C.so`` in a package's folder, or leave the reason for its absence there.

    Raises:
        BuildError: It was not built.
    """
    library, reason = folder / LIBRARY, folder / REASON
    try:
        build_cpu(library, ROOT / "build/cpu")
    except BuildError as error:
        folder.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)
        reason.write_text(f"{error}\n", encoding="utf-8")
        raise
    reason.unlink(missing_ok=True)


class BuildExtensions(build_ext):
    """Called by pip: builds what can be built; the installation continues without the rest."""

    def run(self) -> None:
        """Build into the package's folder, in place or where a wheel is assembled."""
        root = ROOT if self.inplace else Path(self.build_lib)
        folder = root / "livetalk_kernels"
        try:
            build_into(folder)
        except BuildError as error:
            print(f"warning: there are no compiled CPU kernels: {error}", file=sys.stderr)
        if gpu_visible() and find_nvcc() is not None:
            try:
                build_cuda(folder / "_C_cuda.so", ROOT / "build/cuda")
            except BuildError as error:
                print(f"warning: there are no CUDA kernels: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        """List files that belong to an installation by pip."""
        if self.inplace:
            return []
        folder = Path(self.build_lib, "livetalk_kernels")
        return [str(file) for file in (folder / LIBRARY, folder / REASON) if file.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Map built files to the source tree, for editable installs; all are in place."""
        return {}


setup(
    packages=[
        *find_packages(include=["livetalk_kernels", "livetalk_kernels.*"]),
        "livetalk_model",
        *(f"livetalk_model.{name}" for name in find_packages("model")),
    ],
    package_dir={"livetalk_model": "model"},
    package_data={
        "": ["py.typed", "*.schema.json"],
        "livetalk_kernels": ["_C.reason"],
        "livetalk_model": ["samples/*", "demo/*", "demo/audio_encoder/*"],
    },
    ext_modules=[Extension("livetalk_kernels._C", sources=[])],
    cmdclass={"build_ext": BuildExtensions, "build_cpu": BuildCpu, "build_cuda": BuildCuda},
)
