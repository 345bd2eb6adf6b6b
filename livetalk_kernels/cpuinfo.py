"""What the CPU says of itself."""

import platform
from pathlib import Path

INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """Return the CPU's model name."""
    return _field("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Return the CPU's maker by its own identifier, such as AuthenticAMD; empty if unknown."""
    return _field("vendor_id")


def _field(key: str) -> str:
    if INFO.is_file():
        for line in INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""
