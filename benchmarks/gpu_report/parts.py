"""The parts of ``make gpu-report``, in order of value: commands, and conditions to run."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent
SOFT, MARGIN = 0.85, 10.0  # a part starts nothing new after this share, or seconds before its end
WORLDS = (1, 2, 4, 8)
FIRST = "facts"
SMOKE_SECONDS = 40.0
SMALL_TESTS = ("tests/kernels/test_dispatch.py", "tests/kernels/test_numerics.py")
GPU_TESTS = ("-m", "gpu", "tests/kernels", "tests/runtime", "tests/model")
# Missing plugins and packages cost only their own tests.
PYTEST = (
    *("-q", "-rfE", "-p", "no:cacheprovider", "-o", "addopts="),
    "--continue-on-collection-errors",
)
OURS = ("-m", "livetalk_model.cli.main")
BUILDS = {"build": "cuda", "build-cpu": "cpu"}
COMPILERS = {  # kernels -> the fact with their compiler, and what it means to have none
    "cuda": ("nvcc", "there is no nvcc: the cuda backends stay out"),
    "cpu": ("compiler", "there is no C++ compiler"),
}
SOURCES = {**dict.fromkeys(BUILDS, ("setup.py",)), "tests": ("tests", "pyproject.toml")}
# Parts that prepare and test, but measure nothing.
SETUP = frozenset({FIRST, "smoke", "build", "smoke-cuda", "build-cpu"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure.

    Attributes:
        device: ``cuda`` or ``cpu``.
        preset: Preset of the models.
        layers: Blocks of the transformer; None for all that fit.
        folder: Folder for results.
    """

    device: str
    preset: str
    layers: int | None
    folder: Path

    @property
    def small(self) -> bool:
        """Whether it is a CPU, where everything runs only to see that it works."""
        return self.device == "cpu"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        name: Name on the command line, and of its files.
        title: Display name.
        weight: Its share of the time, among the parts yet to run.
        command: Deadline by ``time.monotonic`` -> the command.
        result: File for its results, written as it runs.
        reason: Why it cannot run; None if it can.
        resumes: Whether it resumes from its file; others start over.
        sources: Files and folders of the project that it depends on in addition to the code.
        fixed: Fixed seconds; 0 to go by weight.
        always: Whether it runs again in every run, since its output is outside the folder.
        cwd: Working directory.
    """

    name: str
    title: str
    weight: float
    command: Callable[[float], list[str]]
    result: Path
    reason: str | None = None
    resumes: bool = False
    sources: tuple[str, ...] = ()
    fixed: float = 0.0
    always: bool = False
    cwd: Path = ROOT


def soft_end(begin: float, limit: float) -> float:
    """Compute a part's deadline, somewhat before its limit."""
    return begin + max(SOFT * limit, limit - MARGIN)


def worlds(settings: Settings, facts: Mapping[str, Any]) -> list[int]:
    """List the numbers of ranks that this machine supports."""
    count = 2 if settings.small else len(facts.get("devices") or [])
    return [world for world in WORLDS if world <= count]


def missing(facts: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return None, or which packages are missing."""
    installed = facts.get("packages", {})
    gone = [name for name in names if name in installed and installed[name] is None]
    return f"needs {', '.join(gone)}, not installed here" if gone else None


def make_parts(settings: Settings, facts: Mapping[str, Any]) -> list[Part]:
    """List all parts, in execution order.

    Args:
        settings: What to measure.
        facts: From ``facts.py``; empty before it has run.
    """
    folder, small = settings.folder, settings.small
    ranks = worlds(settings, facts)
    python = sys.executable
    nothing_runs = missing(facts, ("torch", "numpy"))
    if nothing_runs is None and not small and facts and not facts.get("devices"):
        nothing_runs = "torch sees no GPU; --device cpu tries everything on the CPU"
    alone = None if len(ranks) > 1 else "one GPU: it needs two or more"
    model = ["--preset", settings.preset, "--device", settings.device]
    layers = [] if settings.layers is None else ["--layers", str(settings.layers)]
    cuda_only = "CUDA graphs need an NVIDIA GPU" if small else None

    def script(name: str, *given: str, soft: bool = True) -> Callable[[float], list[str]]:
        def command(end: float) -> list[str]:
            words = [python, str(BENCHMARKS / name), *given]
            return [*words, "--until", f"{end:.2f}"] if soft else words

        return command

    def part(
        name: str,
        title: str,
        weight: float,
        command: Callable[[float], list[str]],
        *needs: str,
        reason: str | None = None,
        result: str = "",
        fixed: float = 0.0,
    ) -> Part:
        builds = name in BUILDS
        why = (nothing_runs if name != FIRST and not builds else None) or reason
        return Part(
            name=name,
            title=title,
            weight=weight,
            command=command,
            result=folder / (result or f"{name}.json"),
            reason=why or missing(facts, needs),
            resumes=name == "ops",
            sources=SOURCES.get(name, ()),
            fixed=fixed,
            always=builds,
            cwd=folder if builds else ROOT,
        )

    def build(kernels: str) -> Callable[[float], list[str]]:
        # Away from pyproject.toml, which an older setuptools rejects; objects are kept, so an
        # interrupted build resumes.
        return lambda end: [python, str(ROOT / "setup.py"), f"build_{kernels}"]

    def uncompiled(kernels: str) -> str | None:
        compiler, lack = COMPILERS[kernels]
        return lack if facts and not facts.get(compiler) else None

    def to(name: str) -> list[str]:
        return ["--json", str(folder / name)]

    few = ["--rounds", "3" if small else "6"]
    chunks = ["--chunks", "3" if small else "5"]
    device = ["--device", settings.device]
    profile = folder / "profile"
    tests = SMALL_TESTS if small else GPU_TESTS
    pytest = [python, "-m", "pytest", *PYTEST]
    junit = f"--junitxml={folder / 'tests.xml'}"
    world = str(max(ranks, default=1))
    compiled = "cpu" if small else "cuda"
    return [
        part(
            FIRST, "the machine", 15, script("gpu_report/facts.py", *to("facts.json"), soft=False)
        ),
        part(
            "smoke", "every backend once", 0, script("smoke.py", *device, *to("smoke.json")),
            fixed=SMOKE_SECONDS * (3 if small else 1),  # a CPU has other work
        ),
        part(
            "build", f"compiled kernels, {compiled}", 60, build(compiled), "setuptools",
            reason=uncompiled(compiled),
        ),
        part(
            "smoke-cuda", "every compiled CUDA backend once", 0,
            script("smoke.py", *device, "--backend", "cuda", "cutlass", *to("smoke-cuda.json")),
            reason=cuda_only and "CUDA kernels need an NVIDIA GPU", fixed=SMOKE_SECONDS / 2,
        ),
        part(
            "step", "a denoising step, exact and in FP8", 170,
            script("step.py", *model, *layers, *few, "--precision", "both", *to("step.json")),
        ),
        part(
            "chunk-fp8", "whole chunks in FP8", 55,
            script(
                "stream.py", *model, *layers, *chunks, "--precision", "fp8", *to("chunk-fp8.json")
            ),
        ),
        part(
            "ops", "every op by every backend", 70,
            script(
                "ops_all.py", *device, "--resume", "--no-compile",
                *(["--rounds", "1"] if small else []), *to("ops.json"),
            ),
        ),
        part(
            "vae", "the VAE", 50,
            script("vae.py", *model, *few, *(["--no-compile"] if small else []), *to("vae.json")),
        ),
        part(
            "graphs", "CUDA graphs against launches", 35,
            script("graphs.py", *model, *layers, "--rounds", "5", *to("graphs.json")),
            reason=cuda_only,
        ),
        part(
            "chunk", "whole chunks", 45,
            script("stream.py", *model, *layers, *chunks, *to("chunk.json")),
        ),
        part(
            "build-cpu", "compiled kernels, cpu", 30, build("cpu"), "setuptools",
            reason="the part build has made them" if small else uncompiled("cpu"),
        ),
        part(
            "tests", "the tests for GPUs" if not small else "some tests", 40,
            lambda end: [*pytest, junit, *tests], "pytest", "safetensors", "psutil",
            result="tests.xml",
        ),
        part(
            "scaling", "several ranks: equality and speed", 100,
            script(
                "scaling.py", *model, *layers, *chunks, "--ranks", *map(str, ranks),
                *to("scaling.json"),
            ),
            reason=alone,
        ),
        part(
            "comm", "communication between ranks", 20,
            lambda end: [
                python, *OURS, "bench", "comm", "--nproc", world, *device, "--preset",
                settings.preset, "--seconds", f"{max(0.0, end - time.monotonic()) / 4:.0f}",
                *to("comm.json"),
            ],
            "rich", "psutil", reason=alone,
        ),
        part(
            "profile", "livetalk profile", 60,
            lambda end: [
                python, *OURS, "profile", "--preset", settings.preset, *device, "--chunks", "3",
                "--warmup", "1", "--no-video", "--output", str(profile),
            ],
            "rich", "psutil", "PIL", "matplotlib",
            result="profile/report.json",
        ),
    ]  # fmt: skip
