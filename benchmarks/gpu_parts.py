"""The parts of ``make gpu-report``, in order of value: what each runs, and when it cannot."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
SOFT = 0.85  # of its time, after which a part begins nothing new
WORLDS = (1, 2, 4, 8)
FIRST = "facts"
SMALL_TESTS = ("tests/kernels/test_dispatch.py", "tests/kernels/test_numerics.py")
GPU_TESTS = ("-m", "gpu", "tests/kernels", "tests/runtime", "tests/model")
# Plugins and packages that are missing cost their own tests only.
PYTEST = (
    *("-q", "-rfE", "-p", "no:cacheprovider", "-o", "addopts="),
    "--continue-on-collection-errors",
)
OURS = ("-m", "livetalk_model.cli.main")
SOURCES = {"build": ("setup.py",), "tests": ("tests", "pyproject.toml")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        device: ``cuda`` or ``cpu``.
        preset: Of the models.
        layers: Blocks of the transformer; None: all that fit.
        folder: Where results go.
    """

    device: str
    preset: str
    layers: int | None
    folder: Path

    @property
    def small(self) -> bool:
        """A CPU, where all is done to see that it works."""
        return self.device == "cpu"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        name: For the command line; also of its files.
        title: For people.
        weight: Its share of the time, among those that are still to run.
        command: Seconds that it should take -> the command.
        result: File with its results, which it writes as it goes.
        reason: Why it cannot run; None: it can.
        resumes: It goes on from what its file has; others begin anew.
        sources: Files and folders of the project that it depends on besides the code.
    """

    name: str
    title: str
    weight: float
    command: Callable[[float], list[str]]
    result: Path
    reason: str | None = None
    resumes: bool = False
    sources: tuple[str, ...] = ()


def worlds(settings: Settings, facts: Mapping[str, Any]) -> list[int]:
    """Numbers of ranks that this machine can have."""
    count = 2 if settings.small else len(facts.get("devices") or [])
    return [world for world in WORLDS if world <= count]


def missing(facts: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """None, or which packages are not there."""
    installed = facts.get("packages", {})
    gone = [name for name in names if name in installed and installed[name] is None]
    return f"needs {', '.join(gone)}, not installed here" if gone else None


def make_parts(settings: Settings, facts: Mapping[str, Any]) -> list[Part]:
    """All parts, in the order in which they run.

    Args:
        settings: What is measured.
        facts: From ``gpu_facts.py``; empty before it has run.
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
        def command(seconds: float) -> list[str]:
            words = [python, str(BENCHMARKS / name), *given]
            return [*words, "--budget", f"{seconds * SOFT:.0f}"] if soft else words

        return command

    def part(
        name: str,
        title: str,
        weight: float,
        command: Callable[[float], list[str]],
        *needs: str,
        reason: str | None = None,
        result: str = "",
    ) -> Part:
        why = (nothing_runs if name not in (FIRST, "build") else None) or reason
        return Part(
            name=name,
            title=title,
            weight=weight,
            command=command,
            result=folder / (result or f"{name}.json"),
            reason=why or missing(facts, needs),
            resumes=name == "ops",
            sources=SOURCES.get(name, ()),
        )

    def to(name: str) -> list[str]:
        return ["--json", str(folder / name)]

    few = ["--rounds", "3" if small else "6"]
    step = [*model, *layers, *few]
    chunks = ["--chunks", "3" if small else "5"]
    profile = folder / "profile"
    # `livetalk` draws random weights on the CPU, for minutes if they are those of 14b.
    profiled = "small" if settings.preset == "14b" else settings.preset
    tests = SMALL_TESTS if small else GPU_TESTS
    pytest = [python, "-m", "pytest", *PYTEST]
    junit = f"--junitxml={folder / 'tests.xml'}"
    world = str(max(ranks, default=1))
    return [
        part(FIRST, "the machine", 15, script("gpu_facts.py", *to("facts.json"), soft=False)),
        part(
            "build", "compiled kernels", 50,
            script(
                "gpu_build.py", *(["--only", "cpu"] if small else []), *to("build.json"), soft=False
            ),
        ),
        part("step", "a denoising step", 140, script("step.py", *step, *to("step.json"))),
        part(
            "step-fp8", "a denoising step in FP8", 90,
            script("step.py", *step, "--precision", "fp8", *to("step-fp8.json")),
        ),
        part(
            "graphs", "CUDA graphs against launches", 30,
            script(
                "graphs.py", "--preset", settings.preset, *layers, "--rounds", "5",
                "--output", str(folder / "graphs.json"), soft=False,
            ),
            reason=cuda_only,
        ),
        part(
            "vae", "the VAE", 50,
            script("vae.py", *model, *few, *(["--no-compile"] if small else []), *to("vae.json")),
        ),
        part(
            "ops", "every op by every backend", 60,
            script(
                "ops_all.py", "--device", settings.device, "--resume", "--no-compile",
                *(["--rounds", "1"] if small else []), *to("ops.json"),
            ),
        ),
        part(
            "tests", "the tests for GPUs" if not small else "some tests", 40,
            lambda seconds: [*pytest, junit, *tests], "pytest", "safetensors", "psutil",
            result="tests.xml",
        ),
        part(
            "chunk", "whole chunks", 45,
            script("stream.py", *model, *layers, *chunks, *to("chunk.json"), soft=False),
            "safetensors",
        ),
        part(
            "chunk-fp8", "whole chunks in FP8", 35,
            script(
                "stream.py", *model, *layers, *chunks, "--precision", "fp8",
                *to("chunk-fp8.json"), soft=False,
            ),
            "safetensors",
        ),
        part(
            "scaling", "several ranks: equality and speed", 100,
            script(
                "scaling.py", *model, *layers, *chunks, "--ranks", *map(str, ranks),
                *to("scaling.json"),
            ),
            "safetensors", reason=alone,
        ),
        part(
            "comm", "what ranks send each other", 20,
            lambda seconds: [
                python, *OURS, "bench", "comm", "--nproc", world, "--device", settings.device,
                "--preset", settings.preset, "--seconds", f"{seconds / 4:.0f}", *to("comm.json"),
            ],
            "rich", "psutil", "safetensors", reason=alone,
        ),
        part(
            "profile", f"livetalk profile with preset {profiled}", 100,
            lambda seconds: [
                python, *OURS, "profile", "--preset", profiled, "--device", settings.device,
                "--chunks", "3", "--warmup", "1", "--output", str(profile),
            ],
            "rich", "psutil", "safetensors", "transformers", "pyloudnorm", "PIL", "av",
            "matplotlib",
            result="profile/report.json",
        ),
    ]  # fmt: skip
