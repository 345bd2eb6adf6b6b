"""Package lists and the compiled extensions; everything else stands in pyproject.toml.

The folder ``model/`` is installed as ``livetalk_model``. Sub-packages are found, so a new folder
with an ``__init__.py`` (an op, for example) needs no entry here; nor does a new source in ``csrc``.

``livetalk_kernels/_C.so`` is built whenever there is a C++ compiler, ``_C_cuda.so`` by
``python setup.py build_cuda`` (``make cuda``), or along with the other where a GPU is visible.
Both use libtorch's stable ABI only and no Python header, so one binary serves every Python and
every torch from 2.11 on; a CUDA build needs neither a GPU nor a CUDA build of torch.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
REASON = "livetalk_kernels/_C.reason"  # why there is no _C.so, for `livetalk backends`
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"  # 2.11
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# GCC takes its own AVX-512 intrinsics for uninitialised.
CXX_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
AVX512 = ("f", "bw", "vl", "dq", "bf16")
ISAS: dict[str, list[str]] = {"scalar": []}
if platform.machine() == "x86_64":
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = ["-mavx2", "-mfma", *(f"-mavx512{part}" for part in AVX512)]


class BuildError(BaseError):
    """A build that failed, with what to do about it in one line."""


def torch_folder() -> Path:
    """Where torch lies; its headers and libraries are what the extensions need of it."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("no torch to compile against; install torch, then build again")
    return Path(spec.origin).parent


def run_all(commands: Iterable[list[str]]) -> None:
    """Run compiler commands, as many at a time as there are cores; the first failure counts."""

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stdout + done.stderr)
        if done.returncode:
            raise BuildError(f"{command[0]} failed on {command[-1]}; its messages are above")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, commands))


def stale(target: Path, sources: Iterable[Path]) -> bool:
    """Whether a file is missing or older than what it is made of."""
    return not target.exists() or any(
        source.stat().st_mtime > target.stat().st_mtime for source in sources
    )


def headers() -> list[Path]:
    """Everything that any source may include, and the flags that stand in this file."""
    return [Path(__file__), *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]


def build_cpu(target: Path, work: Path) -> None:
    """Compile ``csrc/cpu`` once per instruction set and ``csrc/bindings/*_cpu.cpp`` once, and link.

    Raises:
        BuildError: There is no compiler or no torch, or the compiler failed.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler found; install g++ (or set CXX), then build again")
    torch = torch_folder()
    work.mkdir(parents=True, exist_ok=True)
    common = [*compiler.split(), *CXX_FLAGS, f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    jobs: dict[Path, list[str]] = {}
    sources: dict[Path, Path] = {}
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        for isa, flags in ISAS.items():
            target_object = work / f"{source.stem}.{isa}.o"
            jobs[target_object] = [*common, *flags, f"-DLIVETALK_ISA={isa}"]
            sources[target_object] = source
    for source in sorted((CSRC / "bindings").glob("*_cpu.cpp")):
        target_object = work / f"{source.stem}.o"
        jobs[target_object] = [*common, TORCH_TARGET, "-isystem", str(torch / "include")]
        sources[target_object] = source
    run_all(
        [*flags, "-o", str(job), "-c", str(sources[job])]
        for job, flags in jobs.items()
        if stale(job, [sources[job], *headers()])
    )
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    link(target, [*compiler.split(), "-shared", *map(str, jobs), *libraries])


def link(target: Path, command: list[str]) -> None:
    """Link beside the target and move it there, so that a running process keeps the old one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".so.new")
    run_all([[*command, "-o", str(fresh)]])
    fresh.replace(target)


class BuildExtensions(build_ext):
    """Build ``_C`` by our own rules; without a compiler, leave the reason in its place."""

    def get_ext_filename(self, fullname: str) -> str:
        """No Python version in the name: there is no Python in the binary."""
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build one extension."""
        target = Path(self.get_ext_fullpath(ext.name))
        reason = target.with_name(Path(REASON).name)
        try:
            build_cpu(target, Path(self.build_temp).resolve() / "cpu")
        except BuildError as error:
            # Everything else works without the extension, so the installation goes on.
            reason.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{error}\n", encoding="utf-8")
            target.unlink(missing_ok=True)
            print(f"warning: compiled CPU kernels were not built: {error}", file=sys.stderr)
        else:
            reason.unlink(missing_ok=True)


setup(
    packages=[
        *find_packages(include=["livetalk_kernels", "livetalk_kernels.*"]),
        "livetalk_model",
        *(f"livetalk_model.{name}" for name in find_packages("model")),
    ],
    package_dir={"livetalk_model": "model"},
    package_data={"": ["py.typed"], "livetalk_kernels": ["_C.reason"]},
    ext_modules=[Extension("livetalk_kernels._C", sources=[])],
    cmdclass={"build_ext": BuildExtensions},
)
