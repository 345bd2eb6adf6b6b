"""Describe a machine for ``make gpu-report``; needs nothing, and says what is missing.

    python benchmarks/gpu_report/facts.py --json facts.json

GPUs, driver, clocks and topology by nvidia-smi, devices by torch, compilers, and which of the
packages that livetalk can use are installed.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livetalk_kernels.machine import machine, version
from livetalk_kernels.outputs import write_json

SCHEMA = "livetalk/facts/1"
SECONDS = 15  # per command
# Module -> distribution.
PACKAGES = {
    "torch": "torch", "triton": "triton", "numpy": "numpy", "safetensors": "safetensors",
    "psutil": "psutil", "pynvml": "nvidia-ml-py", "rich": "rich", "PIL": "pillow", "av": "av",
    "transformers": "transformers", "pytest": "pytest", "matplotlib": "matplotlib",
    "setuptools": "setuptools", "flash_attn": "flash-attn",
    "flash_attn_interface": "flash-attn-3", "flashinfer": "flashinfer-python",
    "cudnn": "nvidia-cudnn-frontend", "quack": "quack-kernels",
    "cutlass_library": "nvidia-cutlass", "xfuser": "xfuser",
}  # fmt: skip
SMI = "index,name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"


def run(*command: str) -> str:
    """Return a command's output; empty if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def installed() -> dict[str, str | None]:
    """Map modules to their distribution's version, ``?`` without one; None if missing."""
    return {
        module: (version(name) or "?") if importlib.util.find_spec(module) is not None else None
        for module, name in PACKAGES.items()
    }


def find_nvcc() -> str | None:
    """Find the CUDA compiler where ``setup.py`` does."""
    home = os.environ.get("CUDA_HOME")
    places = [Path(home, "bin")] if home else [None, Path("/usr/local/cuda/bin")]
    found = (shutil.which("nvcc", path=place and str(place)) for place in places)
    return next(filter(None, found), None)


def devices() -> list[dict[str, Any]]:
    """List the GPUs that torch sees."""
    import torch

    indices = range(torch.cuda.device_count())
    reaches = torch.cuda.can_device_access_peer
    return [
        {
            "name": facts.name,
            "uuid": str(getattr(facts, "uuid", "")),
            "capability": [facts.major, facts.minor],
            "multiprocessors": facts.multi_processor_count,
            "memory_bytes": facts.total_memory,
            "l2_bytes": facts.L2_cache_size,
            "peers": [other for other in indices if other != index and reaches(index, other)],
        }
        for index, facts in enumerate(map(torch.cuda.get_device_properties, indices))
    ]


def versions() -> dict[str, Any]:
    """Collect the versions of torch and its libraries."""
    import torch

    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "nccl": None if nccl is None else ".".join(map(str, nccl)),
        "threads": torch.get_num_threads(),
    }


def attempt(facts: dict[str, Any], name: str, read: Callable[[], Any]) -> None:
    """Add a fact, or the reason why it cannot be read."""
    try:
        facts[name] = read()
    except Exception as error:  # a broken torch can fail in any way, and is reported
        facts[name] = None
        text = str(error).partition("\n")[0]
        facts["problems"].append(f"{name}: {type(error).__name__}: {text}")


def gather() -> dict[str, Any]:
    """Collect all facts; ``problems`` lists what could not be read."""
    nvcc = find_nvcc()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "problems": [],
        "python": f"{platform.python_version()} {sys.executable}",
        "system": f"{platform.system()} {platform.release()}",
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "packages": installed(),
        "compiler": run(*compiler.split(), "--version").partition("\n")[0] if compiler else None,
        "nvcc": run(nvcc, "--version").split("\n")[-1] if nvcc else None,
        "nvidia_smi": run("nvidia-smi", f"--query-gpu={SMI}", "--format=csv").splitlines(),
        "topology": run("nvidia-smi", "topo", "-m").splitlines(),
    }
    attempt(facts, "versions", versions)
    attempt(facts, "devices", devices)
    attempt(facts, "machine", machine)
    facts["complete"] = True
    return facts


def main() -> int:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    facts = gather()
    print(json.dumps(facts, indent=1))
    if args.json:
        write_json(args.json, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
