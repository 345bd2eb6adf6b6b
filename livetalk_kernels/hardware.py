"""What this machine is: its CPU, its GPUs, and versions of what is installed."""

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def cpu_name() -> str:
    """Model name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpus() -> tuple[list[dict[str, Any]], str]:
    """All GPUs by NVML, which needs no CUDA context.

    Returns:
        One entry per GPU: ``name``, ``uuid``, ``driver``, ``memory_bytes``, clocks in MHz now and
        at most, and ``power_limit_w`` (None where the GPU does not tell); and why there is none,
        where there is none.
    """
    try:
        import pynvml  # takes a moment, and only reports want it
    except ImportError:
        return [], "NVML cannot be asked: pip install nvidia-ml-py"
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


def gpu_entry(device: torch.device) -> dict[str, Any] | None:
    """NVML's entry of a GPU (see `gpus`): torch may see fewer of them, in another order."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return next((gpu for gpu in gpus()[0] if gpu["uuid"].removeprefix("GPU-") == uuid), None)


def version(distribution: str) -> str | None:
    """Installed version of a distribution; None without it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


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
    """Pass over what this GPU or this user may not be told."""
    with contextlib.suppress(pynvml.NVMLError):
        yield
