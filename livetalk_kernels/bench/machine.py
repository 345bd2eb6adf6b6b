"""Where and with what a result was measured, to be stored beside it."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from .. import extension
from ..hardware import cpu_name, gpu_entry, version

REPOSITORY = Path(__file__).resolve().parents[2]
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE = 32 << 20  # bytes, where the system does not say


def machine() -> dict[str, Any]:
    """Hardware, threads, versions, commit and date; call it before the run."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cache_bytes": last_level_cache(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": extension.missing() or extension.isa(),
        "gpu": _gpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "livetalk": version("livetalk"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def last_level_cache() -> int:
    """Bytes of the CPU's largest cache."""
    sizes = [USUAL_CACHE] if not CACHES.is_dir() else []
    for file in CACHES.glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        digits = text.rstrip("KM")
        sizes.append(int(digits) << {"K": 10, "M": 20}.get(text[len(digits) :], 0))
    return max(sizes, default=USUAL_CACHE)


def commit() -> str:
    """The commit of livetalk's own repository, ``-dirty`` where it is changed; empty without one.

    The folder where the command was started may be in another repository, so it does not count.
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
    except FileNotFoundError:  # there is no git
        return ""
    return done.stdout.strip()


def sm_clock(device: torch.device) -> int | None:
    """Clock of a GPU's multiprocessors now, in MHz; None on a CPU or where NVML does not tell."""
    entry = gpu_entry(device) if device.type == "cuda" else None
    return entry["sm_clock_mhz"] if entry else None


def _gpu() -> dict[str, Any] | None:
    """The GPU that torch uses, with CUDA's version; None without one."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    facts = {"cuda": torch.version.cuda, "count": torch.cuda.device_count()}
    return {"name": torch.cuda.get_device_name(device)} | (gpu_entry(device) or {}) | facts
