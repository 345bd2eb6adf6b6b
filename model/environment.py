"""What this machine provides: versions, devices, optional libraries."""

import importlib
import importlib.metadata
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from livetalk_kernels.backends import cpu, cuda, cutlass
from livetalk_kernels.cpuinfo import cpu_name
from livetalk_kernels.machine import Cpus, Memory, cpus, gpus, memory, physical_cores
from livetalk_kernels.neighbours import CpuShares, CpuWatch
from livetalk_kernels.units import data_size

_MOMENT = 0.3  # seconds over which other programs' load is averaged


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library that livetalk uses if present.

    Attributes:
        name: Name of the distribution.
        version: Installed version; empty if absent or broken.
        used_for: What it is used for.
        problem: Why it cannot be used, and what to do; else empty.
    """

    name: str
    version: str
    used_for: str
    problem: str


# Distribution, module, use, pip's argument to install it.
OPTIONAL = (
    ("triton", "triton", "Triton kernels", "triton"),
    ("nvidia-cudnn-frontend", "cudnn", "cuDNN's FP8 attention", "livetalk[cudnn]"),
    ("flash-attn", "flash_attn", "FlashAttention 2", "livetalk[flash-attn]"),
    ("flash-attn-3", "flash_attn_interface", "FlashAttention 3, for Hopper", "flash-attn-3"),
    ("flashinfer-python", "flashinfer", "FlashInfer's attention", "livetalk[flashinfer]"),
    ("quack-kernels", "quack", "its FP8 linears", "livetalk[quack]"),
    ("xfuser", "xfuser", "its attention, for comparison", "livetalk[xfuser]"),
)


def environment() -> dict[str, str]:
    """Collect facts for a report: name -> value, for display. Takes a moment: see `others_line`."""
    here, watch = cpus(), CpuWatch()
    time.sleep(_MOMENT)
    others = watch.read()
    return {
        "livetalk": importlib.metadata.version("livetalk"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.release()}",
        "torch": f"{torch.__version__}, threads: {torch.get_num_threads()}",
        "CUDA": _cuda(),
        **_gpus(),
        "CPU": f"{cpu_name()}, {physical_cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "CPU quota": quota_line(here),
        "other programs": "unknown" if others is None else others_line(others),
        "CPU kernels": cpu.missing() or kernels_line(cpu.isa(), cpu.idle_isas()),
        "CUDA kernels": cuda.missing() or "compiled",
        "CUTLASS kernels": cutlass.missing() or "compiled",
        "memory": memory_line(memory()),
    }


def kernels_line(used: str, idle: Mapping[str, str]) -> str:
    """Say which instruction sets fp32 and bf16 use, and why the next higher one is unused."""
    lacks = [
        f"; {name} needs {lack.split()[0]}, which this machine lacks" for name, lack in idle.items()
    ]
    apart = f"{cpu.FP32_ISA} for fp32 and {used} for bf16"
    return f"compiled, using {apart if used in cpu.BF16_ISAS else used}" + "".join(lacks[:1])


def quota_line(found: Cpus) -> str:
    """Say how many CPUs this process may use, and why: ``0.5 of 2 CPUs: 1 thread``."""
    threads = f"{found.usable} thread{'' if found.usable == 1 else 's'}"
    if found.quota is not None:
        return f"{found.quota:.3g} of {found.logical} CPUs: {threads}"
    return f"none; affinity to {found.affinity} of {found.logical} CPUs: {threads}"


def others_line(found: CpuShares) -> str:
    """Say how many CPUs other programs keep busy now: ``0.0 of 2 CPUs``, and the consequence."""
    line = f"keep {found.others:.1f} of {found.usable} CPUs busy now"
    return line + ("; runs will be slow and uneven" if found.crowded(found.usable) else "")


def memory_line(found: Memory) -> str:
    """Format the machine's memory, the limit if there is one, and what is available."""
    total = data_size(found.total)
    if found.limit is not None:
        total = f"{data_size(found.limit)} limit of a {total} machine"
    return f"{total}, {data_size(found.available)} available"


def libraries() -> tuple[Library, ...]:
    """List the optional libraries, and why any cannot be used."""
    return tuple(
        _library(name, module, used_for, source) for name, module, used_for, source in OPTIONAL
    )


def _library(name: str, module: str, used_for: str, source: str) -> Library:
    version, problem = "", ""
    try:
        installed = importlib.metadata.version(name)
        importlib.import_module(module)
        version = installed
    except importlib.metadata.PackageNotFoundError:
        problem = f"not installed: pip install '{source}'"
    except Exception as error:  # a library built for another torch can fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"{installed} does not import: {reason}"
    return Library(name=name, version=version, used_for=used_for, problem=problem)


def _cuda() -> str:
    if torch.version.cuda is None:
        return "none: this PyTorch is built for the CPU only"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda}, but no usable GPU"
    return torch.version.cuda


def _gpus() -> dict[str, str]:
    """Build one entry per GPU, with its driver."""
    found, reason = gpus()
    if not found:
        return {"GPU": f"none: {reason}"}
    return {
        f"GPU {index}": f"{gpu['name']}, {data_size(gpu['memory_bytes'])}, driver {gpu['driver']}"
        for index, gpu in enumerate(found)
    }
