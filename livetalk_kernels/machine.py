"""Facts about this machine, and how much of it this process may use: the one place for them.

CPU, GPUs, caches, memory and installed versions; and the limits set by affinity and control groups
(containers, batch systems), which may be below what the machine has. Torch is imported only where
it is needed: a command line reads the CPU quota before it needs torch.
"""

import contextlib
import importlib.metadata
import math
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .cgroup import cgroup_limits
from .cpuinfo import cpu_name

if TYPE_CHECKING:
    import torch

ROOT = Path("/")
REPOSITORY = Path(__file__).resolve().parents[1]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE = 32 << 20  # bytes, if the system does not report it


@dataclass(frozen=True, kw_only=True)
class Cpus:
    """The CPUs of this machine, and how many of them this process may use.

    Attributes:
        logical: All that the system counts, including hyper-threads.
        affinity: Logical CPUs that this process may run on.
        quota: CPUs that its control group may keep busy, such as 0.5; None for no limit.
    """

    logical: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can run at once: any more than the quota would take turns."""
        return min(self.affinity, max(1, math.ceil(self.quota or self.affinity)))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The CPU's memory, in bytes.

    Attributes:
        total: Memory of the machine.
        limit: Limit of this process's control group, if lower; None for no limit.
        available: What can still be allocated, given both.
    """

    total: int
    limit: int | None
    available: int


def cpus(root: Path = ROOT) -> Cpus:
    """Count the CPUs.

    Args:
        root: Folder that holds ``proc`` and the mounted control groups; tests pass their own.
    """
    logical = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return Cpus(
        logical=logical,
        affinity=affinity,
        quota=cgroup_limits(root).cpus,
    )


def physical_cores() -> int:
    """Count the machine's cores without hyper-threads, like torch's own default."""
    import psutil  # optional where only a GPU is measured

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def memory(root: Path = ROOT) -> Memory:
    """Read the current state of the CPU's memory; ``root`` as in `cpus`."""
    total, available = _host_memory(root)
    limits = cgroup_limits(root)
    limited = limits.memory is not None and limits.memory < total
    left = available if limits.memory_left is None else limits.memory_left
    return Memory(
        total=total,
        limit=limits.memory if limited else None,
        available=min(available, left),
    )


def _host_memory(root: Path) -> tuple[int, int]:
    """Return (total, available) bytes of the machine."""
    info = root / "proc/meminfo"
    if not info.is_file():
        import psutil  # see above

        found = psutil.virtual_memory()
        return found.total, found.available
    lines = (line.split() for line in info.read_text(encoding="ascii").splitlines())
    sizes = {words[0]: int(words[1]) << 10 for words in lines if len(words) == 3}
    total = sizes["MemTotal:"]
    return total, sizes.get("MemAvailable:", total)


def machine() -> dict[str, Any]:
    """Collect hardware, limits, threads, versions, commit and date; call it before the run."""
    import torch

    from .backends import cpu

    here = memory()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "cpu_quota": cgroup_limits().cpus,
        "memory_bytes": here.total,
        "memory_limit_bytes": here.limit,
        "cache_bytes": last_level_cache(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": cpu.missing() or cpu.isa(),
        "gpu": _gpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "livetalk": version("livetalk"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def gpus() -> tuple[list[dict[str, Any]], str]:
    """List all GPUs through NVML, which needs no CUDA context.

    Returns:
        One entry per GPU: ``name``, ``uuid``, ``driver``, ``memory_bytes``, current and maximum
        clocks in MHz, and ``power_limit_w`` (None if the GPU does not report it); and, if the list
        is empty, why.
    """
    try:
        import pynvml  # slow to import, and only reports need it
    except ImportError:
        return [], "NVML is not available: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], str(error)
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        count = pynvml.nvmlDeviceGetCount()
        found = [
            _describe(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)) | {"driver": driver}
            for index in range(count)
        ]
        return found, "" if found else f"no device is visible, driver {driver}"
    finally:
        pynvml.nvmlShutdown()


def gpu_entry(device: "torch.device") -> dict[str, Any] | None:
    """Return NVML's entry of a GPU (see `gpus`): torch may see fewer, in another order."""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return next((gpu for gpu in gpus()[0] if gpu["uuid"].removeprefix("GPU-") == uuid), None)


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def last_level_cache() -> int:
    """Return the bytes of the CPU's largest cache."""
    sizes = [USUAL_CACHE] if not CACHES.is_dir() else []
    for file in CACHES.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        digits = text.rstrip("KM")
        sizes.append(int(digits) << {"K": 10, "M": 20}.get(text[len(digits) :], 0))
    return max(sizes, default=USUAL_CACHE)


def boot_id() -> str:
    """Identify this machine since its boot: processes with equal ids share a clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return socket.gethostname()


def commit() -> str:
    """Return the commit of livetalk's own repository, ``-dirty`` if modified; empty without one.

    The working directory may belong to another repository, so it is not consulted.
    """
    if not (REPOSITORY / "setup.py").is_file():
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # git is not installed
        return ""
    return done.stdout.strip()


def _gpu() -> dict[str, Any] | None:
    """Describe the GPU that torch uses, with CUDA's version; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    facts = {"cuda": torch.version.cuda, "count": torch.cuda.device_count()}
    return {"name": torch.cuda.get_device_name(device)} | (gpu_entry(device) or {}) | facts


def _describe(pynvml: ModuleType, handle: Any) -> dict[str, Any]:
    sm, memory = pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM
    entry: dict[str, Any] = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    }
    optional = {
        "sm_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, sm),
        "memory_clock_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, memory),
        "sm_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, sm),
        "memory_clock_max_mhz": lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, memory),
        "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
    }
    for name, read in optional.items():
        entry[name] = None
        with _unless_hidden(pynvml):
            entry[name] = read()
    return entry


@contextlib.contextmanager
def _unless_hidden(pynvml: ModuleType) -> Iterator[None]:
    """Ignore what this GPU or this user's permissions do not reveal."""
    with contextlib.suppress(pynvml.NVMLError):
        yield
